"""A NUMA policy of shared memory (mbind)"""
# refused: NUMA
import ctypes
import mmap

from case import address_of, case, same, syscall


@case
def policy_shared():
    memory = mmap.mmap(-1, 16 * mmap.PAGESIZE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    memory[0] = 1
    nodes = ctypes.c_ulong(1)
    # MPOL_BIND to node 0
    syscall(237, address_of(memory), 16 * mmap.PAGESIZE, 2, ctypes.addressof(nodes), 64, 0)
    yield
    found = ctypes.c_int(-1)
    # MPOL_F_ADDR
    syscall(239, ctypes.addressof(found), 0, 0, address_of(memory), 2)
    same("policy", found.value, 2)
