"""Segments of a local descriptor table (modify_ldt)"""
# refused: local descriptor table
import ctypes
import struct

from case import case, same, syscall

MODIFY_LDT = 154
READ, WRITE = 0, 0x11


def table():
    found = ctypes.create_string_buffer(65536)
    got = syscall(MODIFY_LDT, READ, ctypes.addressof(found), 65536)
    return found.raw[:got].rstrip(b"\0")


@case
def local_descriptors():
    # Entry 1: 32-bit data, 4 KiB at 0x10000; entry 3: 16-bit code.
    for entry, base, limit, flags in ((1, 0x10000, 0xFFF, 0b1010001), (3, 0x20000, 0x7FF, 0b1000100)):
        descriptor = ctypes.create_string_buffer(struct.pack("=IIII", entry, base, limit, flags), 16)
        syscall(MODIFY_LDT, WRITE, ctypes.addressof(descriptor), 16)
    before = table()
    same("set", len(before) > 24, True)
    yield
    same("table", table(), before)
