"""Shared memory that is mapped twice in one process, once to write and once to run (mremap of nothing, memfd)"""
import ctypes
import mmap
import os

from case import case, libc, same


@case
def mapped_twice():
    libc.mmap.restype = libc.mremap.restype = ctypes.c_ulong
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    size = 16 << 12
    one = libc.mmap(None, size, 3, 0x21, -1, 0)
    # An old size of 0 maps the same once more.
    two = libc.mremap(one, 0, size, 1, None)
    assert two not in (one, ctypes.c_ulong(-1).value)
    memfd = os.memfd_create("code")
    os.ftruncate(memfd, size)
    write, run = libc.mmap(None, size, 3, 1, memfd, 0), libc.mmap(None, size, 5, 1, memfd, 0)
    os.close(memfd)
    turn = [0]

    def change():
        turn[0] += 1
        ctypes.memset((one, two)[turn[0] % 2] + (turn[0] % 16 << 12), turn[0] % 256, 100)
        # mov eax, N; ret
        ctypes.memmove(write, b"\xb8" + turn[0].to_bytes(4, "little") + b"\xc3", 6)

    change()
    yield change
    same("both", ctypes.string_at(one, size), ctypes.string_at(two, size))
    same("what was written", ctypes.string_at(two + (turn[0] % 16 << 12), 100), bytes([turn[0] % 256]) * 100)
    same("code", ctypes.CFUNCTYPE(ctypes.c_int)(run)(), turn[0])
    ctypes.memset(one, 77, 1)
    same("shared", ctypes.string_at(two, 1), bytes([77]))
    ctypes.memmove(write, b"\xb8\x05\0\0\0\xc3", 6)
    same("new code", ctypes.CFUNCTYPE(ctypes.c_int)(run)(), 5)
