"""Huge pages that are given back, fetched again, moved and mapped anew while they are copied"""
# huge: 40
import ctypes
import mmap

from case import HUGE, address_of, case, libc, same, syscall

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000
PAGES = 6


@case
def hugetlb_given_back():
    libc.mmap.restype = libc.mremap.restype = ctypes.c_ulong
    libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    memory = mmap.mmap(-1, PAGES * HUGE, flags=PRIVATE)
    at = address_of(memory)
    expected = [0] * PAGES
    for page in range(PAGES):
        memory[page * HUGE + 4096 * page] = expected[page] = page + 1
    place = [libc.mmap(None, ctypes.c_ulong(2 * HUGE), 3, PRIVATE, -1, 0)]
    ctypes.memset(place[0], 1, 8)
    moved = [1]
    count = [0]

    def change():
        count[0] += 1
        page = count[0] % PAGES
        kind = count[0] // PAGES % 4
        if kind == 0:
            # Given back and fetched again by reading: zeros, and no page was written.
            syscall(28, at + page * HUGE, HUGE, 4)
            assert memory[page * HUGE] == 0
            expected[page] = 0
        elif kind == 1:
            memory[page * HUGE + 4096 * page] = expected[page] = count[0] % 250 + 1
        elif kind == 2:
            syscall(28, at + page * HUGE, HUGE, 4)
            expected[page] = 0
        else:
            # Mapped anew.
            libc.mmap(ctypes.c_void_p(at + page * HUGE), ctypes.c_ulong(HUGE), 3, PRIVATE | 0x10, -1, 0)
            memory[page * HUGE + 4096 * page] = expected[page] = count[0] % 250 + 1
        if count[0] % 5 == 0:
            # MREMAP_MAYMOVE | MREMAP_FIXED
            free = libc.mmap(None, ctypes.c_ulong(2 * HUGE), 0, PRIVATE | 0x4000, -1, 0)
            assert libc.mremap(place[0], 2 * HUGE, 2 * HUGE, 3, free) == free
            place[0] = free
            moved[0] = count[0] % 250 + 1
            ctypes.memset(place[0] + HUGE, moved[0], 8)
            ctypes.memset(place[0], moved[0], 8)

        if count[0] % 7 == 0:
            # PROT_READ, PROT_NONE, PROT_READ | PROT_WRITE
            libc.mprotect(ctypes.c_void_p(still), HUGE, [1, 0, 3][count[0] // 7 % 3])

    held = libc.mmap(None, ctypes.c_ulong(2 * HUGE), 3, PRIVATE, -1, 0)
    still = held + HUGE
    ctypes.memset(still, 6, 9)
    for _ in range(3):
        change()
    yield change
    libc.mprotect(ctypes.c_void_p(still), HUGE, 1)
    same("protected", ctypes.string_at(still, 10), b"\6" * 9 + b"\0")
    found = [memory[page * HUGE + 4096 * page] for page in range(PAGES)]
    same("content", found, expected)
    same("no more", [sum(memory[page * HUGE:page * HUGE + 16 * 4096]) for page in range(PAGES)], expected)
    same("what was moved", ctypes.string_at(place[0], 9), bytes([moved[0]] * 8 + [0]))
    if moved[0] != 1:
        same("its second page", ctypes.string_at(place[0] + HUGE, 9), bytes([moved[0]] * 8 + [0]))
