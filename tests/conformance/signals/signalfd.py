"""A descriptor for signals (signalfd), with one that waits"""
import ctypes
import os
import signal
import struct

from case import case, libc, same


@case
def signalfd():
    number = signal.SIGRTMIN + 6
    signal.pthread_sigmask(signal.SIG_BLOCK, {number, signal.SIGHUP})
    mask = ctypes.c_uint64(1 << number - 1 | 1 << signal.SIGHUP - 1)
    fd = libc.signalfd(-1, ctypes.byref(mask), 0o4000)
    assert fd >= 0
    os.kill(os.getpid(), number)
    yield
    os.kill(os.getpid(), signal.SIGHUP)
    numbers = sorted(struct.unpack_from("=I", os.read(fd, 128))[0] for _ in range(2))
    same("signals", numbers, sorted([number, int(signal.SIGHUP)]))
    same("blocking", os.get_blocking(fd), False)
