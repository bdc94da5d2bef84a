"""NUMA policies of threads (set_mempolicy), beside memory that has one of its own or none"""
import ctypes
import mmap
import threading

from case import address_of, case, same, syscall

LEN = 4 * mmap.PAGESIZE
STATIC = 1 << 15


def own():
    mode, nodes = ctypes.c_int(-1), (ctypes.c_ulong * 16)()
    syscall(239, ctypes.addressof(mode), ctypes.addressof(nodes), 1024, 0, 0)
    return mode.value, list(nodes)


def policy_at(address):
    mode = ctypes.c_int(-1)
    syscall(239, ctypes.addressof(mode), 0, 0, address, 2)
    return mode.value


@case
def thread_policy():
    nodes = ctypes.c_ulong(1)
    plain, bound, shared = (
        mmap.mmap(-1, LEN, flags=kind | mmap.MAP_ANONYMOUS)
        for kind in (mmap.MAP_PRIVATE, mmap.MAP_PRIVATE, mmap.MAP_SHARED)
    )
    # Beside a policy of the thread this one can be told apart in the process itself alone.
    syscall(237, address_of(bound), LEN, 2, ctypes.addressof(nodes), 64, 0)
    ready, go, found = threading.Barrier(3), threading.Event(), {}

    def other(name, mode):
        if mode is not None:
            syscall(238, mode, ctypes.addressof(nodes), 64)
        found[name] = own()
        ready.wait()
        go.wait()
        found[name] = own()

    threads = [
        threading.Thread(target=other, args=("interleave", 3 | STATIC)),
        threading.Thread(target=other, args=("none", None)),
    ]
    for thread in threads:
        thread.start()
    ready.wait()
    syscall(238, 2, ctypes.addressof(nodes), 64)
    before = {"first": own(), **found}
    same("modes", [before[name][0] for name in ("first", "interleave", "none")], [2, 3 | STATIC, 0])
    memory = [policy_at(address_of(area)) for area in (plain, bound, shared)]
    same("policies of memory", memory, [0, 2, 0])
    yield
    go.set()
    for thread in threads:
        thread.join()
    same("policies", {"first": own(), **found}, before)
    same("policies of memory", [policy_at(address_of(area)) for area in (plain, bound, shared)], memory)
