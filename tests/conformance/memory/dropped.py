"""Memory that is given back while it is copied is zero again (MADV_DONTNEED, MADV_FREE is not)"""
import mmap

from case import address_of, case, same, syscall

PAGE = mmap.PAGESIZE


@case
def dropped():
    memory = mmap.mmap(-1, 128 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address, wanted, count = address_of(memory), [0] * 128, [0]

    def change():
        count[0] += 1
        page = count[0] * 37 % 128
        if count[0] % 3 == 0:
            syscall(28, address + page * PAGE, PAGE, 4)
            wanted[page] = 0
        else:
            memory[page * PAGE] = wanted[page] = count[0] % 255 + 1

    for _ in range(200):
        change()
    yield change
    same("pages that differ", [page for page in range(128) if memory[page * PAGE] != wanted[page]], [])
