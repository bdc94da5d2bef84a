"""Guard pages that are made and removed while the memory is copied, over contents and without"""
import mmap

from case import address_of, byte_at, case, same, syscall

PAGE = mmap.PAGESIZE
COUNT = 64
INSTALL, REMOVE, DONTNEED = 102, 103, 4


@case
def guard_later():
    memory = mmap.mmap(-1, COUNT * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = address_of(memory)
    expected = {}
    for page in range(0, COUNT, 2):
        memory[page * PAGE] = expected[page] = page + 1
    expected.update((page, 0) for page in range(1, COUNT, 2))
    turn = 0

    def change():
        nonlocal turn
        page = turn * 7 % COUNT
        if expected[page] is None:
            syscall(28, address + page * PAGE, PAGE, REMOVE)
            expected[page] = 0
            if turn % 3:
                memory[page * PAGE] = expected[page] = turn % 255 + 1
        else:
            syscall(28, address + page * PAGE, PAGE, INSTALL)
            # It stays a guard page.
            syscall(28, address + page * PAGE, PAGE, DONTNEED)
            expected[page] = None
        turn += 1

    for _ in range(COUNT // 3):
        change()
    yield change
    while turn < 3 * COUNT // 2:
        change()
    same("pages", {page: byte_at(address + page * PAGE) for page in range(COUNT)}, expected)
    for page in [page for page in expected if expected[page] is None]:
        syscall(28, address + page * PAGE, PAGE, REMOVE)
        same("what is below a guard page", byte_at(address + page * PAGE), 0)
