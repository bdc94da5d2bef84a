"""Shared locks of two descriptions of one file, whole and in part"""
import fcntl
import os
import struct

from case import case, same, scratch

OFD_GETLK, OFD_SETLK = 36, 37


def lock(kind, start, length):
    return struct.pack("=hhxxxxqqixxxx", kind, os.SEEK_SET, start, length, 0)


@case
def shared_flock():
    first, second, third = (os.open(scratch("file"), os.O_CREAT | os.O_RDWR) for _ in range(3))
    fcntl.flock(first, fcntl.LOCK_SH)
    fcntl.flock(second, fcntl.LOCK_SH)
    fcntl.fcntl(first, OFD_SETLK, lock(fcntl.F_RDLCK, 0, 100))
    fcntl.fcntl(second, OFD_SETLK, lock(fcntl.F_RDLCK, 50, 100))
    yield
    for fd in (first, second):
        try:
            fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise AssertionError("nobody held a shared lock")
        except BlockingIOError:
            pass
        fcntl.flock(fd, fcntl.LOCK_UN)
    fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    found = []
    for start in (0, 49, 100, 149, 150):
        got = fcntl.fcntl(third, OFD_GETLK, lock(fcntl.F_WRLCK, start, 1))
        found.append(struct.unpack("=hhxxxxqqixxxx", got)[0] != fcntl.F_UNLCK)
    same("held", found, [True, True, True, True, False])
