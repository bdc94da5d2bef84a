"""A context of asynchronous input and output (io_setup)"""
# refused: asynchronous I/O
import ctypes

from case import case, syscall


@case
def aio():
    context = ctypes.c_ulong(0)
    syscall(206, 8, ctypes.addressof(context))
    yield
    syscall(207, context.value)
