"""Huge pages that parent and child share as copy-on-write: each has what it wrote itself, and what was there before"""
# huge: 32
import mmap
import os

from case import HUGE, case, forever, fork, same

PAGES = 6


@case
def hugetlb_fork():
    memory = mmap.mmap(-1, PAGES * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
    shared = mmap.mmap(-1, 4096, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    for page in range(PAGES - 1):
        memory[page * HUGE] = page + 1
    go, ask = os.pipe()
    found, answer = os.pipe()

    def child():
        memory[0] = 200
        shared[0] = 1
        os.read(go, 1)
        os.write(answer, bytes(memory[page * HUGE] for page in range(PAGES)))
        memory[(PAGES - 1) * HUGE] = 1
        forever()

    fork(child)
    while not shared[0]:
        pass
    memory[HUGE] = 201
    count = [0]

    def change():
        count[0] = (count[0] + 1) % 256
        shared[1] = memory[2 * HUGE] = count[0]

    change()
    yield change
    os.write(ask, b"x")
    same("the child's", list(os.read(found, 99)), [200, 2, 3, 4, 5, 0])
    same("the parent's", [memory[page * HUGE] for page in range(PAGES)], [1, 201, count[0], 4, 5, 0])
    memory[(PAGES - 1) * HUGE] = 1
