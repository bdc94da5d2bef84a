"""Ranges punched out of, and put into, an open file (fallocate) while it is copied"""
import os

from case import case, libc, same, scratch

PUNCH = 3


@case
def fallocate():
    fd = os.open(scratch("file"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * (1 << 20))
    expected = bytearray(b"x" * (1 << 20))
    at = 0

    def change():
        nonlocal at
        if at + 8192 <= len(expected):
            assert libc.syscall(285, fd, PUNCH, at, 4096) == 0
            expected[at:at + 4096] = bytes(4096)
            at += 8192

    change()
    yield change
    same("content", os.pread(fd, 2 << 20, 0) == bytes(expected), True)
