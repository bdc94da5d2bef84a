"""A set of epoll with edges that were seen, one that was not, and a signal that waits"""
import os
import select
import signal

from case import case, same


@case
def epoll_edge_signal():
    sets = select.epoll()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
    waiting = signalfd([signal.SIGWINCH])
    sets.register(waiting, select.EPOLLIN | select.EPOLLET)
    reader, writer = os.pipe()
    sets.register(reader, select.EPOLLIN | select.EPOLLET)
    os.write(writer, b"x")
    same("the pipe's edge", sets.poll(0), [(reader, select.EPOLLIN)])
    os.kill(os.getpid(), signal.SIGWINCH)
    yield
    found = dict(sets.poll(1))
    same("the signal's edge, which nobody has seen", found.get(waiting), select.EPOLLIN)
    same("the signal", int.from_bytes(os.read(waiting, 128)[:4], "little"), signal.SIGWINCH)
    os.write(writer, b"y")
    same("the next edge", dict(sets.poll(1)).get(reader), select.EPOLLIN)


def signalfd(signals):
    import ctypes

    mask = sum(1 << number - 1 for number in signals)
    return ctypes.CDLL(None).signalfd(-1, ctypes.byref(ctypes.c_uint64(mask)), 0)
