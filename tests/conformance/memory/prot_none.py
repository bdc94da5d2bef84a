"""Memory that has content and no rights, or only that of reading"""
import mmap

from case import address_of, case, mapping, same, syscall

PAGE = mmap.PAGESIZE


@case
def prot_none():
    memory = mmap.mmap(-1, 32 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = address_of(memory)
    memory[:] = b"content!" * (32 * PAGE // 8)
    syscall(10, address, 8 * PAGE, 0)
    syscall(10, address + 8 * PAGE, 8 * PAGE, 1)
    syscall(10, address + 16 * PAGE, 8 * PAGE, 5)
    yield
    modes = [mapping(address + at * PAGE)["mode"] for at in (0, 8, 16, 24)]
    same("rights", modes, ["---p", "r--p", "r-xp", "rw-p"])
    syscall(10, address, 32 * PAGE, 3)
    same("content", memory[:] == b"content!" * (32 * PAGE // 8), True)
