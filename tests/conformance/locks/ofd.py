"""Locks of descriptions (OFD): ranges, read and write, two descriptions of one file in one process"""
import fcntl
import os
import struct

from case import case, same, scratch

F_OFD_GETLK, F_OFD_SETLK = 36, 37


def lock(fd, kind, start, length):
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("=hhiqqi4x", kind, 0, 0, start, length, 0))


def get(fd, start):
    raw = fcntl.fcntl(fd, F_OFD_GETLK, struct.pack("=hhiqqi4x", fcntl.F_WRLCK, 0, 0, start, 1, 0))
    kind, _, _, start, length, pid = struct.unpack("=hhiqqi4x", raw)
    return (kind, start, length, pid) if kind != fcntl.F_UNLCK else None


@case
def ofd():
    first, second, third = (os.open(scratch("lock"), os.O_CREAT | os.O_RDWR) for _ in range(3))
    lock(first, fcntl.F_WRLCK, 0, 10)
    lock(second, fcntl.F_RDLCK, 10, 10)
    lock(first, fcntl.F_RDLCK, 15, 5)
    lock(second, fcntl.F_WRLCK, 100, 0)
    yield
    same("first", get(second, 3), (fcntl.F_WRLCK, 0, 10, -1))
    same("second", get(first, 12), (fcntl.F_RDLCK, 10, 10, -1))
    same("to the end", get(third, 10**12), (fcntl.F_WRLCK, 100, 0, -1))
    same("free", get(third, 50), None)
    os.close(second)
    same("the second has closed", (get(third, 12), get(third, 17)), (None, (fcntl.F_RDLCK, 15, 5, -1)))
