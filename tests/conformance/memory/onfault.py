"""Memory that is locked when it is touched (MLOCK_ONFAULT)"""
import ctypes
import mmap

from case import address_of, case, libc, mapping, same, syscall


@case
def onfault():
    memory = mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = address_of(memory)
    # mlock2(MLOCK_ONFAULT)
    syscall(325, address, 32 * mmap.PAGESIZE, 1)
    touched = [0]

    def change():
        touched[0] += 1
        memory[touched[0] % 8 * mmap.PAGESIZE] = touched[0] & 255

    def resident():
        vector = (ctypes.c_ubyte * 64)()
        libc.mincore(ctypes.c_void_p(address), 64 * mmap.PAGESIZE, vector)
        return sum(byte & 1 for byte in vector)

    change()
    before = mapping(address)["VmFlags"]
    assert {"lo", "lf"} <= before, before
    yield change
    same("flags of the locked part", mapping(address)["VmFlags"], before)
    same("flags of the rest", mapping(address + 32 * mmap.PAGESIZE)["VmFlags"] & {"lo", "lf"}, set())
    assert resident() <= 8, f"{resident()} pages are resident, not more than 8 were touched"
