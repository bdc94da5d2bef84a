"""Processes that share memory as copy-on-write and that write to it, give it back, map it anew, protect it, fork and end all the while"""
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
        """What is not as it should be: how many pages, and the first of them with what it holds and what it should."""
        found = {page: ctypes.string_at(self.address + page * PAGE, PAGE) for page in self.pages}
        wrong = [page for page, tag in self.pages.items() if found[page] != contents(tag)]
        first = [f"{page}: {found[page][:8].hex()} {contents(self.pages[page])[:8].hex()}" for page in wrong[:3]]
        return " ".join([f"{len(wrong)} pages of {len(found)}, page", *first]) if wrong else ""

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
    # Bytes: a child runs; all may stop.
    shared = mmap.mmap(-1, PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    RUNS, STOP = 0, 100
    answers = [os.pipe() for _ in range(CHILDREN)]

    def work(index, generation):
        chance = random.Random(index * 1000 + generation)
        turn = 0
        while not shared[STOP]:
            turn += 1
            memory.change(chance, ((index + 1) << 48) + ((generation + 1) << 40) + (turn << 16))
            shared[RUNS + index] = 1
            time.sleep(0.003)
            # A child goes on where it is now, in half of them without its parent.
            if turn == 100 and generation < 3:
                child = fork(lambda: work(index, generation + 1))
                if index % 2:
                    os._exit(0)
                os.waitpid(child, 0)
        os.write(answers[index][1], f"generation {generation} {memory.wrong()}".encode())
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
    same("memory of the parent", memory.wrong(), "")
    found = [os.read(answer[0], 1000).decode() for answer in answers]
    same("memory of children that is wrong", [wrong for wrong in found if "page" in wrong], [])
