"""Memory that grows downwards (MAP_GROWSDOWN)"""
import ctypes
import mmap

from case import case, libc, mapping, same

PAGE = mmap.PAGESIZE


@case
def grows_down():
    libc.mmap.restype = ctypes.c_ulong
    room = libc.mmap(None, ctypes.c_ulong(4 << 20), 0, 0x22, -1, 0)
    top = room + (4 << 20)
    # The rest stays reserved: nobody else's memory comes so near that it could not grow.
    libc.munmap(ctypes.c_void_p(top - (1 << 20)), ctypes.c_ulong(1 << 20))
    # MAP_PRIVATE | ANONYMOUS | GROWSDOWN | FIXED_NOREPLACE
    found = libc.mmap(ctypes.c_void_p(top - 4 * PAGE), ctypes.c_ulong(4 * PAGE), 3, 0x100122, -1, 0)
    same("address", found, top - 4 * PAGE)
    ctypes.memset(top - 4 * PAGE, 7, 4 * PAGE)
    yield
    same("flag", "gd" in mapping(top - 1)["VmFlags"], True)
    ctypes.memset(top - 40 * PAGE, 8, PAGE)
    same("content", (ctypes.string_at(top - 4 * PAGE, 2), ctypes.string_at(top - 40 * PAGE, 2)), (b"\7\7", b"\x08\x08"))
