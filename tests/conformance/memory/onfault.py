"""Memory that is locked when it is touched (MLOCK_ONFAULT)"""
import ctypes
import mmap
import re

from case import case, libc, read, same, syscall


def flags(address):
    inside = False
    for line in read("/proc/self/smaps").splitlines():
        if re.match(r"[0-9a-f]+-", line):
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            inside = start <= address < end
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise KeyError(hex(address))


@case
def onfault():
    memory = mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
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
    before = flags(address)
    assert {"lo", "lf"} <= before, before
    yield change
    same("flags of the locked part", flags(address), before)
    same("flags of the rest", flags(address + 32 * mmap.PAGESIZE) & {"lo", "lf"}, set())
    assert resident() <= 8, f"{resident()} pages are resident, not more than 8 were touched"
