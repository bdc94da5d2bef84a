"""Memory that is moved to other addresses while it is copied (mremap)"""
import ctypes
import mmap

from case import case, libc, same

PAGE = mmap.PAGESIZE


@case
def moved():
    libc.mmap.restype = libc.mremap.restype = ctypes.c_ulong
    libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    size = 64 * PAGE
    places = [libc.mmap(None, ctypes.c_ulong(size), 3, 0x22, -1, 0) for _ in range(4)]
    values = [1, 2, 3, 4]
    for place, value in zip(places, values):
        ctypes.memset(place, value, size)
    free = [libc.mmap(None, ctypes.c_ulong(size), 0, 0x22, -1, 0)]

    def change():
        at = values[0] % 4
        # MREMAP_MAYMOVE | MREMAP_FIXED
        assert libc.mremap(places[at], size, size, 3, free[0]) == free[0]
        libc.mmap(ctypes.c_void_p(places[at]), ctypes.c_ulong(size), 0, 0x32, -1, 0)
        places[at], free[0] = free[0], places[at]
        values[at] = (values[at] * 7 + 3) % 251
        ctypes.memset(places[at] + PAGE, values[at], size - PAGE)
        ctypes.memset(places[at], values[at], PAGE)
        values.append(values.pop(0))
        places.append(places.pop(0))

    change()
    yield change
    for place, value in zip(places, values):
        same("content", set(ctypes.string_at(place, size)), {value})
