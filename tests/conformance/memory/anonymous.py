"""Private and shared anonymous memory of all protections, written while it is copied"""
import mmap

from case import case, same

PAGE = mmap.PAGESIZE


@case
def anonymous():
    areas = [mmap.mmap(-1, 300 * PAGE, flags=flags | mmap.MAP_ANONYMOUS) for flags in (mmap.MAP_PRIVATE, mmap.MAP_SHARED)]
    expected = [bytearray(300 * PAGE) for _ in areas]
    count = [0]

    def change():
        for area, wanted in zip(areas, expected):
            at = count[0] * 7919 % (300 * PAGE)
            area[at] = wanted[at] = count[0] % 251 + 1
        count[0] += 1

    for _ in range(500):
        change()
    yield change
    for area, wanted, what in zip(areas, expected, ("private", "shared")):
        same(what, [at for at in range(0, 300) if area[at * PAGE:(at + 1) * PAGE] != wanted[at * PAGE:(at + 1) * PAGE]], [])
