"""Waits with a mask of signals of their own: ppoll, sigsuspend, epoll_pwait; a signal ends them, and the old mask is back"""
import ctypes
import os
import select
import signal
import struct

from case import case, fork, same, status, syscall, until

PPOLL, SIGSUSPEND, EPOLL_PWAIT = 271, 130, 281


@case
def temporary_mask():
    answer, answered = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGHUP})

    def child(number):
        def work():
            signal.signal(signal.SIGUSR1, lambda *_: os.write(answered, b"h"))
            mask = ctypes.create_string_buffer(struct.pack("=Q", 1 << signal.SIGHUP - 1), 8)
            try:
                events = ctypes.create_string_buffer(12)
                if number == PPOLL:
                    syscall(number, 0, 0, 0, ctypes.addressof(mask), 8)
                elif number == SIGSUSPEND:
                    syscall(number, ctypes.addressof(mask), 8)
                else:
                    epoll = select.epoll()
                    at = ctypes.addressof(events)
                    syscall(number, epoll.fileno(), at, 1, -1, ctypes.addressof(mask), 8)
            except InterruptedError:
                os.write(answered, b"i")
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
            os.write(answered, b"m" if {signal.SIGUSR1, signal.SIGHUP} <= blocked else b"?")

        return work

    pids = [fork(child(number)) for number in (PPOLL, SIGSUSPEND, EPOLL_PWAIT)]
    usr1 = 1 << signal.SIGUSR1 - 1
    for pid in pids:
        until("it waits", lambda: not int(status("SigBlk", pid), 16) & usr1)
    yield
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)
        found = b""
        while len(found) < 3:
            found += os.read(answer, 1)
        same("heard, interrupted, the mask", found, b"him")
