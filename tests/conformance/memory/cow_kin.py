"""Memory shared as copy-on-write with grandchildren, with orphans whose parent has ended, with a child that moved, gave back, protected and replaced parts of it, and one that runs another program"""
import ctypes
import mmap
import os
import struct
import sys

from case import address_of, case, forever, fork, mapping, prctl, same, scratch, syscall, until

PAGE = mmap.PAGESIZE
PAGES = 1024
OTHER = """
import os, sys
mine = bytearray(b"other" * 4096 * 16)
os.write(int(sys.argv[2]), b"r")
os.read(int(sys.argv[1]), 1)
os.write(int(sys.argv[2]), b"\\0" if mine == b"other" * 4096 * 16 else b"\\1")
"""


def contents(tag):
    return struct.pack("<Q", tag) * (PAGE // 8)


def wrong(address, expected):
    """Pages that do not hold what they should: None is zeros."""
    zero = bytes(PAGE)
    return [page for page, tag in expected.items()
            if ctypes.string_at(address + page * PAGE, PAGE) != (zero if tag is None else contents(tag))]


@case
def cow_kin():
    memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = address_of(memory)
    shared = mmap.mmap(-1, PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    expected = {}
    with open(scratch("file"), "wb") as file:
        file.write(b"".join(contents(1000 + page) for page in range(16)))

    def write(pages, mark):
        for page in pages:
            ctypes.memmove(address + page * PAGE, contents(mark + page), PAGE)
            expected[page] = mark + page

    write(range(PAGES), 1)
    # Orphans come to this process.
    prctl(36, 1)
    gone = os.pipe()
    members = []

    def member(work):
        """A process that sets up, says so, and checks itself when it is asked."""
        asked, ask = os.pipe()
        found, answer = os.pipe()
        number = len(members)
        members.append((ask, found))

        def run():
            check = work()
            shared[number] = 1
            os.read(asked, 1)
            os.write(answer, bytes([min(check(), 255)]))
            forever()

        return run

    def plain(mark, pages):
        def work():
            write(pages, mark)
            return lambda: len(wrong(address, expected))
        return work

    grandchildren = [member(plain(3 << 32, range(5))), member(plain(4 << 32, range(600, 700)))]
    orphans = [member(plain(5 << 32, range(3))), member(plain(6 << 32, range(9)))]

    def parent():
        # Most of it anew before it has children: another version of it, which they share.
        write(range(256, PAGES), 2 << 32)
        for grandchild in grandchildren:
            fork(grandchild)
        return lambda: len(wrong(address, expected))

    def rearranged():
        end = address + PAGES * PAGE
        # Moved, given back, read-only, not readable, unmapped, replaced by a file and by other memory of its own.
        moved = syscall(9, 0, 64 * PAGE, 3, 0x22, -1, 0)
        syscall(25, address, 64 * PAGE, 64 * PAGE, 3, moved)
        syscall(28, address + 64 * PAGE, 64 * PAGE, 4)
        syscall(10, address + 128 * PAGE, 64 * PAGE, 1)
        syscall(10, address + 192 * PAGE, 64 * PAGE, 0)
        syscall(11, address + 256 * PAGE, 64 * PAGE)
        file = os.open(scratch("file"), os.O_RDONLY)
        syscall(9, address + 320 * PAGE, 16 * PAGE, 3, 0x12, file, 0)
        ctypes.memmove(address + 321 * PAGE, contents(77), PAGE)
        syscall(9, address + 384 * PAGE, 64 * PAGE, 3, 0x32, -1, 0)
        ctypes.memmove(address + 385 * PAGE, contents(78), PAGE)
        syscall(9, address + 448 * PAGE, 64 * PAGE, 3, 0x31, -1, 0)
        ctypes.memmove(address + 449 * PAGE, contents(79), PAGE)

        def check():
            bad = len(wrong(moved, {page: page + 1 for page in range(64)}))
            bad += len(wrong(address, {page: None for page in range(64, 128)}))
            bad += len(wrong(address, {page: page + 1 for page in range(128, 192)}))
            bad += mapping(address + 128 * PAGE)["mode"] != "r--p"
            bad += mapping(address + 192 * PAGE)["mode"] != "---p"
            syscall(10, address + 192 * PAGE, 64 * PAGE, 1)
            bad += len(wrong(address, {page: page + 1 for page in range(192, 256)}))
            for unmapped in (0, 256, 300):
                try:
                    mapping(address + unmapped * PAGE)
                    bad += 1
                except KeyError:
                    pass
            bad += len(wrong(address, {320 + page: 77 if page == 1 else 1000 + page for page in range(16)}))
            bad += len(wrong(address, {384: None, 385: 78, 386: None, 447: None}))
            bad += len(wrong(address, {448: None, 449: 79, 450: None, 511: None}))
            bad += len(wrong(address, {page: page + 1 for page in range(512, PAGES)}))
            bad += address + PAGES * PAGE != end
            return bad

        return check

    def leaves():
        for orphan in orphans:
            fork(orphan)
        os.read(gone[0], 1)
        os._exit(0)

    children = [member(plain(7 << 32, range(40))), member(parent), member(rearranged)]
    for child in children:
        fork(child)
    leaver = fork(leaves)
    asked, ask = os.pipe()
    found, answer = os.pipe()

    def other():
        os.set_inheritable(asked, True)
        os.set_inheritable(answer, True)
        os.execv(sys.executable, [sys.executable, "-c", OTHER, str(asked), str(answer)])

    fork(other)
    same("the other program", os.read(found, 1), b"r")
    until("all are set up", lambda: sum(shared[:len(members)]) == len(members))
    os.write(gone[1], b"x")
    os.waitpid(leaver, 0)
    count = [0]

    def change():
        count[0] += 1
        write([1000 + count[0] % 16], count[0] << 32)

    change()
    yield change
    same("pages of the parent that are wrong", wrong(address, expected), [])
    for ask_one, _ in members:
        os.write(ask_one, b"x")
    bad = [os.read(found_one, 1)[0] for _, found_one in members]
    same("pages that are wrong, process by process", bad, [0] * len(members))
    os.write(ask, b"x")
    same("the other program", os.read(found, 1), b"\0")
