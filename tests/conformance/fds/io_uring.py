"""A ring of io_uring"""
# refused: io_uring
import ctypes
import os

from case import case, syscall


@case
def io_uring():
    parameters = ctypes.create_string_buffer(120)
    fd = syscall(425, 4, ctypes.addressof(parameters))
    yield
    os.fstat(fd)
