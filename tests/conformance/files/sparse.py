"""A sparse file: its holes, and what is written into them while it is copied"""
import os

from case import case, same, scratch

MIB = 1 << 20


@case
def sparse():
    fd = os.open(scratch("sparse"), os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 512 * MIB)
    os.pwrite(fd, b"tail", 512 * MIB - 4)
    at = 0

    def change():
        nonlocal at
        if at < 64 * MIB:
            at += MIB
            os.pwrite(fd, b"%d" % at, at)

    change()
    yield change
    same("size", os.fstat(fd).st_size, 512 * MIB)
    same("tail", os.pread(fd, 10, 512 * MIB - 4), b"tail")
    for place in range(MIB, at + MIB, MIB):
        same(f"at {place}", os.pread(fd, len(b"%d" % place), place), b"%d" % place)
    same("a hole", os.pread(fd, 4096, 300 * MIB), bytes(4096))
    assert os.fstat(fd).st_blocks * 512 < 80 * MIB, os.fstat(fd).st_blocks
