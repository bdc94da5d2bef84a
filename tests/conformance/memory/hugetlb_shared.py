"""Shared anonymous huge pages of two processes that write to them, with holes and pages of zeros"""
# huge: 24
import mmap

from case import HUGE, address_of, case, fork, huge_pages, mapping, same, syscall, until

SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x40000


@case
def hugetlb_shared():
    memory = mmap.mmap(-1, 6 * HUGE, flags=SHARED)
    unclaimed = mmap.mmap(-1, 2 * HUGE, flags=SHARED | 0x4000)
    ordinary = mmap.mmap(-1, 4096, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    at = address_of(memory)
    # The third holds zeros, the fourth and the fifth are holes.
    memory[0], memory[HUGE], memory[2 * HUGE], memory[5 * HUGE + 12345] = 1, 1, 0, 3
    unclaimed[HUGE] = 4

    def child():
        while ordinary[0] != 255:
            memory[HUGE + 4096] = memory[4096]
            if ordinary[1]:
                # MADV_REMOVE, and fetched again by reading.
                syscall(28, at + 5 * HUGE, HUGE, 9)
                assert memory[5 * HUGE] == 0
                ordinary[1] = 0

    fork(child)
    before = mapping(at)["KernelPageSize"], "nr" in mapping(at)["VmFlags"], mapping(at)["name"].split()[-2:]
    count = [0]

    def change():
        count[0] += 1
        memory[4096] = unclaimed[HUGE + 8192] = count[0] & 255
        if count[0] == 20:
            ordinary[1] = 1

    change()
    free, claimed = huge_pages("Free"), huge_pages("Rsvd")
    yield change
    found = mapping(at)
    same("mapping", (found["KernelPageSize"], "nr" in found["VmFlags"], found["name"].split()[-2:]), before)
    until("the copy that moved away is gone", lambda: (huge_pages("Free"), huge_pages("Rsvd")) == (free, claimed))
    same("content", (memory[0], memory[HUGE], unclaimed[HUGE], memory[2 * HUGE]), (1, 1, 4, 0))
    same("counted", (memory[4096], unclaimed[HUGE + 8192]), (count[0] & 255,) * 2)
    until("the other process writes", lambda: memory[HUGE + 4096] == count[0] & 255)
    same("removed", memory[5 * HUGE + 12345], 0 if count[0] >= 20 else 3)
    memory[3 * HUGE] = memory[4 * HUGE] = 9
    ordinary[0] = 255
