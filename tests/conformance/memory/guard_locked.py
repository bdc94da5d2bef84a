"""Guard pages in memory that was locked afterwards"""
# not: move: the container may not lock so much (RLIMIT_MEMLOCK)
import mmap

from case import address_of, byte_at, case, mapping, same, syscall

PAGE = mmap.PAGESIZE
COUNT = 16


@case
def guard_locked():
    memory = mmap.mmap(-1, COUNT * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = address_of(memory)
    memory[0] = 1
    syscall(28, address + 4 * PAGE, 2 * PAGE, 102)
    try:
        syscall(149, address, COUNT * PAGE)
    except OSError:
        # It could not fetch a guard page, and has locked all the same.
        pass
    before = mapping(address)
    assert "lo" in before["VmFlags"], before
    yield
    found = mapping(address)
    same("flags", found["VmFlags"], before["VmFlags"])
    same("range", found["range"], before["range"])
    pages = [byte_at(address + page * PAGE) for page in range(COUNT)]
    same("pages", pages, [1, 0, 0, 0, None, None] + [0] * (COUNT - 6))
