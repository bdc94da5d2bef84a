"""A fifo without a name"""
# refused: fifo without a name
import os

from case import case, same, scratch


@case
def fifo_deleted():
    os.mkfifo(scratch("a"))
    fd = os.open(scratch("a"), os.O_RDWR)
    os.unlink(scratch("a"))
    yield
    os.write(fd, b"x")
    same("data", os.read(fd, 9), b"x")
