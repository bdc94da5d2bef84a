"""A NUMA policy of a thread (set_mempolicy)"""
# refused: NUMA
import ctypes

from case import case, same, syscall


@case
def thread_policy():
    nodes = ctypes.c_ulong(1)
    syscall(238, 2, ctypes.addressof(nodes), 64)
    yield
    found = ctypes.c_int(-1)
    syscall(239, ctypes.addressof(found), 0, 0, 0, 0)
    same("policy", found.value, 2)
