"""A POSIX message queue that is open"""
# refused: message queue
import ctypes
import os

from case import case, same, syscall


@case
def queue():
    name = ctypes.create_string_buffer(b"gantry-%d" % os.getpid())
    fd = syscall(240, ctypes.addressof(name), os.O_CREAT | os.O_RDWR, 0o600, 0)
    syscall(241, ctypes.addressof(name))
    message = ctypes.create_string_buffer(b"hello")
    syscall(242, fd, ctypes.addressof(message), 5, 3, 0)
    yield
    found = ctypes.create_string_buffer(8192)
    same("length", syscall(243, fd, ctypes.addressof(found), 8192, 0, 0), 5)
