"""A POSIX message queue with messages that wait"""
# refused: message queue
import ctypes
import os

from case import case, same, syscall


@case
def queue_messages():
    name = ctypes.create_string_buffer(b"gantry-%d" % os.getpid())
    fd = syscall(240, name, os.O_CREAT | os.O_RDWR, 0o600, 0)
    syscall(241, name)
    for priority, message in enumerate((b"hello", b"again")):
        syscall(242, fd, message, len(message), priority, 0)
    yield
    found = ctypes.create_string_buffer(8192)
    same("length", syscall(243, fd, ctypes.addressof(found), 8192, 0, 0), 5)
    same("message", found.raw[:5], b"again")
