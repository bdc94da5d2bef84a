"""NUMA policies of memory (mbind)"""
import ctypes
import mmap
import os

from case import address_of, case, fork, forever, same, syscall

LEN = 16 * mmap.PAGESIZE
STATIC, RELATIVE = 1 << 15, 1 << 14
# MPOL_PREFERRED, MPOL_BIND, MPOL_INTERLEAVE, MPOL_LOCAL, MPOL_PREFERRED_MANY, MPOL_WEIGHTED_INTERLEAVE
MODES = [(1, 1), (2, 1), (3, 1), (4, 0), (5, 1), (6, 1), (2 | STATIC, 1), (3 | RELATIVE, 1), (1 | STATIC, 1)]


def policy_at(address):
    mode, nodes = ctypes.c_int(-1), (ctypes.c_ulong * 16)()
    # MPOL_F_ADDR
    syscall(239, ctypes.addressof(mode), ctypes.addressof(nodes), 1024, address, 2)
    return mode.value, list(nodes)


@case
def policy():
    areas = []
    for mode, nodes in MODES:
        memory = mmap.mmap(-1, LEN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[0] = 1
        mask = ctypes.c_ulong(nodes)
        try:
            # One part of it has none.
            syscall(237, address_of(memory), LEN // 2, mode, ctypes.addressof(mask), 64 if nodes else 0, 0)
        except OSError:
            # An older kernel does not know them all; all know these.
            assert mode not in (1, 2, 3), mode
        areas.append(memory)

    def look():
        return [policy_at(address_of(memory) + at) for memory in areas for at in (0, LEN // 2)]

    before = look()
    same("policies", [mode for mode, _ in before[:6]], [1, 0, 2, 0, 3, 0])
    end, begin = os.pipe()
    asked, ask = os.pipe()

    def child():
        os.read(asked, 1)
        os.write(begin, repr(look()).encode())
        forever()

    pid = fork(child)
    yield
    same("policies", look(), before)
    os.write(ask, b"x")
    same("policies of the child", eval(os.read(end, 65536)), before)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    same("contents", [memory[0] for memory in areas], [1] * len(areas))
