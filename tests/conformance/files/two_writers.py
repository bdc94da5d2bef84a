"""One file written by two processes through descriptions of their own"""
import os

from case import case, fork, forever, same, scratch, until


@case
def two_writers():
    path = scratch("shared")
    open(path, "w").close()
    ask, told = os.pipe()

    def child():
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"child\n")
        os.read(ask, 1)
        os.write(fd, b"later\n")
        forever()

    fork(child)
    until("the child", lambda: os.path.getsize(path) == 6)
    fd = os.open(path, os.O_RDWR)
    os.lseek(fd, 6, os.SEEK_SET)
    yield
    os.write(fd, b"own\n")
    os.write(told, b"x")
    until("the child again", lambda: os.path.getsize(path) == 16)
    same("content", os.pread(fd, 99, 0), b"child\nown\nlater\n")
