"""Processes that share memory as copy-on-write and write to it, give it back, unmap, map and protect it, fork and end all the while"""
import ctypes
import mmap
import os
import random
import struct
import time

from case import address_of, case, forever, fork, prctl, same, syscall, until

PAGE = mmap.PAGESIZE
PAGES = 1024
CHILDREN = 6
MMAP, MPROTECT, MUNMAP, MADVISE = 9, 10, 11, 28


def contents(tag):
    return struct.pack("<Q", tag) * (PAGE // 8)


class Memory:
    """Pages with what should be in each: a tag, 0 for zeros, nothing where nothing is mapped."""

    def __init__(self):
        self.map = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = address_of(self.map)
        self.pages = {page: 0 for page in range(PAGES)}
        for page in range(PAGES):
            self.write(page, page + 1)

    def write(self, page, tag):
        ctypes.memmove(self.address + page * PAGE, contents(tag), PAGE)
        self.pages[page] = tag

    def wrong(self):
        return sum(ctypes.string_at(self.address + page * PAGE, PAGE) != contents(tag) for page, tag in self.pages.items())

    def change(self, chance, tag):
        first = chance.randrange(PAGES)
        pages = range(first, min(first + chance.randrange(1, 24), PAGES))
        at, length = self.address + first * PAGE, len(pages) * PAGE
        mapped = all(page in self.pages for page in pages)
        what = chance.random()
        if not mapped:
            syscall(MMAP, at, length, 3, 0x32, -1, 0)
            self.pages.update((page, 0) for page in pages)
        elif what < 0.6:
            for page in pages:
                self.write(page, tag + page)
        elif what < 0.8:
            syscall(MADVISE, at, length, 4)
            self.pages.update((page, 0) for page in pages)
        elif what < 0.9:
            syscall(MUNMAP, at, length)
            for page in pages:
                del self.pages[page]
        else:
            syscall(MPROTECT, at, length, 1)
            syscall(MPROTECT, at, length, 3)


@case
def cow_busy():
    memory = Memory()
    # Bytes: a child runs; it has ended its work; how many of its pages are wrong; all may stop.
    shared = mmap.mmap(-1, PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    RUNS, ENDED, WRONG, STOP = 0, 100, 200, 300

    def work(index, generation):
        chance = random.Random(index * 1000 + generation)
        turn = 0
        while not shared[STOP]:
            turn += 1
            memory.change(chance, ((index + 1) << 48) + ((generation + 1) << 40) + (turn << 16))
            shared[RUNS + index] = 1
            time.sleep(0.001)
            # A child goes on where it is now, in half of them without its parent.
            if turn == 300 and generation < 3:
                child = fork(lambda: work(index, generation + 1))
                if index % 2:
                    os._exit(0)
                os.waitpid(child, 0)
        shared[WRONG + index] = min(memory.wrong(), 255)
        shared[ENDED + index] = 1
        forever()

    # Orphans come to this process.
    prctl(36, 1)
    for index in range(CHILDREN):
        fork(lambda: work(index, 0))
    until("the children run", lambda: sum(shared[RUNS:RUNS + CHILDREN]) == CHILDREN)
    chance = random.Random(99)
    count = [0]

    def change():
        count[0] += 1
        memory.change(chance, count[0] << 16)

    yield change
    shared[STOP] = 1
    until("the children have looked", lambda: sum(shared[ENDED:ENDED + CHILDREN]) == CHILDREN)
    same("pages of the parent that are wrong", memory.wrong(), 0)
    same("pages of children that are wrong", list(shared[WRONG:WRONG + CHILDREN]), [0] * CHILDREN)
