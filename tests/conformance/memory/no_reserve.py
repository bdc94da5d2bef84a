"""Memory without a reserve (MAP_NORESERVE), most of it never touched"""
import mmap

from case import address_of, case, mapping, same

PAGE = mmap.PAGESIZE


@case
def no_reserve():
    # MAP_NORESERVE
    memory = mmap.mmap(-1, 16 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    memory[5 << 30] = 7
    yield
    same("flag", "nr" in mapping(address_of(memory))["VmFlags"], True)
    same("content", (memory[5 << 30], memory[(5 << 30) + 1], memory[9 << 30]), (7, 0, 0))
