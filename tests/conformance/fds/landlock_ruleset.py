"""A Landlock ruleset that nobody has taken on"""
# refused: Landlock
import ctypes
import os
import struct

from case import case, syscall


@case
def landlock_ruleset():
    attributes = ctypes.create_string_buffer(struct.pack("=Q", 1))
    fd = syscall(444, ctypes.addressof(attributes), 8, 0)
    yield
    os.fstat(fd)
