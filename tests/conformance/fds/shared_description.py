"""One description over fork and dup: offset, flags and lock are shared, another one of the same file is not"""
import fcntl
import os

from case import case, fork, same, scratch


@case
def shared_description():
    fd = os.open(scratch("data"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"0123456789")
    os.lseek(fd, 0, os.SEEK_SET)
    twin, other = os.dup2(fd, 90), os.open(scratch("data"), os.O_RDWR)
    to_child, from_child = os.pipe(), os.pipe()

    def work():
        os.close(fd)
        while os.read(to_child[0], 1) == b"r":
            os.write(from_child[1], os.read(twin, 2))
        fcntl.fcntl(twin, fcntl.F_SETFL, os.O_APPEND)
        os.write(from_child[1], b"set")

    fork(work)
    yield
    found = []
    for _ in range(2):
        os.write(to_child[1], b"r")
        found.append(os.read(from_child[0], 9))
        found.append(os.read(fd, 1))
    same("read in turns", found, [b"01", b"2", b"34", b"5"])
    same("offsets", (os.lseek(twin, 0, 1), os.lseek(other, 0, 1)), (6, 0))
    os.write(to_child[1], b"e")
    os.read(from_child[0], 9)
    flags = [fcntl.fcntl(one, fcntl.F_GETFL) & os.O_APPEND for one in (fd, twin, other)]
    same("flags", flags, [os.O_APPEND, os.O_APPEND, 0])
