"""64 MiB that 32 children share with their parent as copy-on-write: what each wrote before, during and after the copying, and that it takes no more memory than it did"""
import mmap
import os
import struct
import time

from case import Lost, case, fork, forever, read, same

PAGE = mmap.PAGESIZE
PAGES = (64 << 20) // PAGE
CHILDREN = 32
# Children that write while they are copied.
BUSY = 4


def contents(tag):
    return struct.pack("<Q", tag) * (PAGE // 8)


class Memory:
    """Pages that hold their number, but for those that were written here since."""

    def __init__(self):
        self.map = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for page in range(PAGES):
            self.map[page * PAGE:(page + 1) * PAGE] = contents(page + 1)
        self.written = {}

    def write(self, page, tag):
        self.map[page * PAGE:(page + 1) * PAGE] = contents(tag)
        self.written[page] = tag

    def wrong(self):
        return [page for page in range(PAGES)
                if self.map[page * PAGE:(page + 1) * PAGE] != contents(self.written.get(page, page + 1))]


def pss(pids):
    """KiB of memory that is no file's, of all together."""
    lines = [line for pid in pids for line in read(f"/proc/{pid}/smaps_rollup").splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))


@case
def cow_shared():
    memory = Memory()
    shared = mmap.mmap(-1, PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    # Bytes of the shared page: a child is set up; the parent's count; every child may end its writing.
    COUNT, STOP = 100, 101

    def child(index, asked, found):
        mark = (index + 1) << 32
        first = index * 100
        for page in range(first, first + 8):
            memory.write(page, mark + page)
        shared[index] = 1
        while index < BUSY and not shared[STOP]:
            count = shared[COUNT]
            memory.write(first + 10 + count % 8, mark + count)
            time.sleep(0.002)
        os.read(asked, 1)
        memory.write(first + 30, mark)
        os.write(found, struct.pack("<I", len(memory.wrong())))
        forever()

    pipes = []
    pids = [os.getpid()]
    for index in range(CHILDREN):
        asked, ask = os.pipe()
        found, answer = os.pipe()
        pids.append(fork(lambda: child(index, asked, answer)))
        os.close(asked)
        os.close(answer)
        pipes.append((ask, found))
    while sum(shared[:CHILDREN]) < CHILDREN:
        time.sleep(0.01)
    for page in range(5000, 5008):
        memory.write(page, page << 32)
    count = [0]

    def change():
        count[0] = (count[0] + 1) % 256
        shared[COUNT] = count[0]
        memory.write(6000 + count[0] % 8, count[0] + 1)

    for _ in range(16):
        change()
        time.sleep(0.004)
    before = pss(pids)
    yield change
    shared[STOP] = 1
    after = pss(pids)
    # The few pages that somebody wrote meanwhile, and what Python itself wrote.
    if after > before * 1.05 + 8192:
        raise Lost(f"they share less: {after} KiB of memory, and {before} before")
    memory.write(7000, 1)
    for ask, _ in pipes:
        os.write(ask, b"x")
    same("pages of the parent that are wrong", memory.wrong(), [])
    wrong = [struct.unpack("<I", os.read(found, 4))[0] for _, found in pipes]
    same("pages of children that are wrong", wrong, [0] * CHILDREN)
