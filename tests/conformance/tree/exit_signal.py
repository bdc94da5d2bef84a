"""A child that sends another signal than SIGCHLD when it ends, and one that sends none"""
import os
import signal

from case import case, same, syscall, until

CLONE = 56


def clone(exit_signal, go):
    pid = syscall(CLONE, exit_signal, 0, 0, 0, 0)
    if pid == 0:
        os.read(go, 1)
        os._exit(3)
    return pid


@case
def exit_signal():
    heard = []
    for number in (signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, lambda number, _: heard.append(number))
    (go, start), (go_silent, start_silent) = os.pipe(), os.pipe()
    loud, silent = clone(signal.SIGUSR1, go), clone(0, go_silent)
    yield
    os.write(start, b"x")
    until("the signal", lambda: heard)
    same("signals", heard, [signal.SIGUSR1])
    # __WALL: a child that sends another signal is not waited for otherwise.
    same("waited", os.waitpid(loud, 0x40000000), (loud, 3 << 8))
    os.write(start_silent, b"x")
    same("the silent one", os.waitpid(silent, 0x40000000), (silent, 3 << 8))
    same("no other", heard, [signal.SIGUSR1])
