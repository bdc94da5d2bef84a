"""Memory that parent and child share as copy-on-write: each has what it wrote itself, and what was there before"""
import mmap
import os

from case import case, forever, fork, same

PAGE = mmap.PAGESIZE


@case
def fork_cow():
    memory = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    shared = mmap.mmap(-1, PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    for page in range(64):
        memory[page * PAGE] = page + 1
    go, ask = os.pipe()
    found, answer = os.pipe()

    def child():
        memory[0] = 200
        shared[0] = 1
        os.read(go, 1)
        os.write(answer, bytes(memory[page * PAGE] for page in range(64)) + shared[1:2])
        forever()

    fork(child)
    while not shared[0]:
        pass
    memory[PAGE] = 201
    count = [0]

    def change():
        count[0] = (count[0] + 1) % 256
        shared[1] = memory[2 * PAGE] = count[0]

    change()
    yield change
    os.write(ask, b"x")
    theirs = os.read(found, 99)
    same("the parent's", [memory[page * PAGE] for page in range(64)], [1, 201, count[0], *range(4, 65)])
    same("the child's", list(theirs[:64]), [200, 2, 3, *range(4, 65)])
    same("shared", theirs[64], count[0])
    shared[2] = 9
