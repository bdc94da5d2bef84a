"""A POSIX message queue whose next message is told of by a signal (mq_notify)"""
# refused: message queue
import ctypes
import os
import signal
import struct

from case import case, same, syscall


@case
def queue_notify():
    told = []
    signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
    name = ctypes.create_string_buffer(b"gantry-%d" % os.getpid())
    fd = syscall(240, name, os.O_CREAT | os.O_RDWR, 0o600, 0)
    syscall(241, name)
    # struct sigevent: value, signal, SIGEV_SIGNAL
    syscall(244, fd, struct.pack("qii", 5, signal.SIGUSR1, 0).ljust(64, b"\0"))
    yield
    same("told", told, [])
    syscall(242, fd, b"x", 1, 0, 0)
    same("told", told, [1])
