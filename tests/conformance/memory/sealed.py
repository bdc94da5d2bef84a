"""A mapping that is sealed (mseal)"""
# refused: seal
import ctypes
import mmap

from case import address_of, case, libc, mapping, same, syscall


@case
def sealed():
    memory = mmap.mmap(-1, 4 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = address_of(memory)
    syscall(462, address, 4 * mmap.PAGESIZE, 0)
    yield
    same("unmapped", libc.munmap(ctypes.c_void_p(address), 4 * mmap.PAGESIZE), -1)
