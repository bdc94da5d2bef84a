"""Huge pages of hugetlbfs: written, zero, reserved and not touched, given back, of all protections"""
# huge: 32
import ctypes
import mmap

from case import HUGE, address_of, byte_at, case, libc, mapping, same, syscall

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000


def held(address):
    """Bytes of huge pages that are there, what is claimed, the size of pages, and where the mapping ends: it was not cut."""
    found = mapping(address)
    return found["Private_Hugetlb"], "nr" in found["VmFlags"], found["KernelPageSize"], found["mode"], found["range"]


@case
def hugetlb():
    written = mmap.mmap(-1, 6 * HUGE, flags=PRIVATE)
    # Its first page is written now and then, the second ends with a byte, the third holds zeros, the fourth is not there,
    # the fifth was given back, the sixth is read only.
    at = address_of(written)
    written[0], written[2 * HUGE - 1], written[2 * HUGE] = 1, 2, 0
    written[4 * HUGE], written[5 * HUGE + 4096] = 5, 6
    # MADV_DONTNEED
    syscall(28, at + 4 * HUGE, HUGE, 4)
    libc.mprotect(ctypes.c_void_p(at + 5 * HUGE), HUGE, 1)
    untouched = mmap.mmap(-1, 2 * HUGE, flags=PRIVATE)
    # MAP_NORESERVE
    unclaimed = mmap.mmap(-1, 3 * HUGE, flags=PRIVATE | 0x4000)
    unclaimed[HUGE] = 7
    hidden = mmap.mmap(-1, HUGE, flags=PRIVATE)
    hidden[77] = 8
    libc.mprotect(ctypes.c_void_p(address_of(hidden)), HUGE, 0)
    places = [at, at + 5 * HUGE] + [address_of(memory) for memory in (untouched, unclaimed, hidden)]
    before = [held(place) for place in places]
    count = [0]

    def change():
        count[0] += 1
        written[count[0] % 8 * 4096 + 1] = count[0] & 255
        unclaimed[HUGE + 1] = count[0] & 255

    change()
    yield change
    same("what is there", [held(place) for place in places], before)
    same("written", (written[0], written[2 * HUGE - 1], written[2 * HUGE - 2]), (1, 2, 0))
    same("counted", (written[count[0] % 8 * 4096 + 1], unclaimed[HUGE + 1]), (count[0] & 255,) * 2)
    same("read only", (written[5 * HUGE + 4096], written[5 * HUGE]), (6, 0))
    same("no reserve", (unclaimed[HUGE], unclaimed[HUGE + 4096]), (7, 0))
    same("what cannot be read", byte_at(address_of(hidden) + 77), None)
    libc.mprotect(ctypes.c_void_p(address_of(hidden)), HUGE, 3)
    same("hidden", hidden[77], 8)
    # What was claimed is there, page by page.
    for page in range(2):
        untouched[page * HUGE] = 1
    for page in range(5):
        written[page * HUGE + 9] = 9
    same("the rest", (written[4 * HUGE], written[3 * HUGE]), (0, 0))
