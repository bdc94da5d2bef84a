"""A timer on the CPU clock of a thread"""
# refused: CPU clock
import ctypes
import struct

from case import case, libc


@case
def cpu_clock_thread():
    event = ctypes.create_string_buffer(struct.pack("=Qiii", 0, 34, 1, 0), 64)
    made = ctypes.c_int()
    assert libc.syscall(222, ctypes.c_long(3), event, ctypes.byref(made)) == 0
    block = ctypes.create_string_buffer(struct.pack("=4q", 0, 0, 5000, 0))
    assert libc.syscall(223, ctypes.c_long(made.value), ctypes.c_long(0), block, None) == 0
    yield
    left = ctypes.create_string_buffer(32)
    assert libc.syscall(224, ctypes.c_long(made.value), left) == 0
    assert 4000 < struct.unpack("=4q", left.raw)[2] <= 5000
