"""A BPF map"""
# refused: BPF object
# not: move: a container lacks CAP_BPF
import ctypes
import os
import struct

from case import case, syscall


@case
def bpf():
    attributes = ctypes.create_string_buffer(struct.pack("=IIII", 2, 4, 8, 4), 72)
    fd = syscall(321, 0, ctypes.addressof(attributes), 72)
    yield
    os.fstat(fd)
