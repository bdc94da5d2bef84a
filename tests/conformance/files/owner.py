"""Who gets a file's signal, and which: F_SETOWN_EX, F_SETSIG, O_ASYNC"""
import fcntl
import os
import signal
import socket
import struct
import threading

from case import case, fork, forever, same

GETOWN_EX, SETOWN_EX = 16, 15


def owner(fd):
    return struct.unpack("=2i", fcntl.fcntl(fd, GETOWN_EX, bytes(8)))


@case
def owner_():
    number = signal.SIGRTMIN + 3
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    left, right = socket.socketpair()
    child = fork(forever)
    fcntl.fcntl(left, SETOWN_EX, struct.pack("=2i", 1, os.getpid()))
    fcntl.fcntl(left, fcntl.F_SETSIG, number)
    fcntl.fcntl(left, fcntl.F_SETFL, fcntl.fcntl(left, fcntl.F_GETFL) | os.O_ASYNC)
    group, _ = socket.socketpair()
    fcntl.fcntl(group, fcntl.F_SETOWN, -os.getpgrp())
    thread, _t = socket.socketpair()
    fcntl.fcntl(thread, SETOWN_EX, struct.pack("=2i", 0, threading.get_native_id()))
    other, _o = socket.socketpair()
    fcntl.fcntl(other, fcntl.F_SETOWN, child)
    yield
    same("process", owner(left), (1, os.getpid()))
    same("group", owner(group), (2, os.getpgrp()))
    same("thread", owner(thread), (0, threading.get_native_id()))
    same("child", owner(other), (1, child))
    same("signal", fcntl.fcntl(left, fcntl.F_GETSIG), int(number))
    right.send(b"x")
    found = signal.sigtimedwait({number}, 10)
    same("it comes", (found.si_signo, left.recv(2)), (int(number), b"x"))
