"""The heap grows and shrinks while it is copied (brk)"""
import ctypes

from case import case, libc, same, syscall


@case
def heap():
    libc.sbrk.restype = ctypes.c_ulong
    libc.sbrk.argtypes = [ctypes.c_long]
    base = libc.sbrk(1 << 20)
    ctypes.memset(base, 5, 1 << 20)
    sizes = [1 << 20]

    def change():
        if len(sizes) < 300:
            libc.sbrk(8192)
            end = libc.sbrk(0)
            ctypes.memset(end - 8192, len(sizes) % 250, 8192)
            sizes.append(8192)

    change()
    yield change
    end = libc.sbrk(0)
    same("end", syscall(12, 0), end)
    same("content", ctypes.string_at(base, 1 << 20) == b"\5" * (1 << 20), True)
    last = ctypes.string_at(end - 8192, 8192)
    same("last", last, bytes([(len(sizes) - 1) % 250]) * 8192)
    libc.sbrk(4096)
    same("goes on", libc.sbrk(0), end + 4096)
