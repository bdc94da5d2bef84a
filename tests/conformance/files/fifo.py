"""Fifos with a name: data in one, both ends, one without a writer, one opened for both"""
import fcntl
import os

from case import case, same, scratch


@case
def fifo():
    for name in "abc":
        os.mkfifo(scratch(name), 0o622)
    reader = os.open(scratch("a"), os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(scratch("a"), os.O_WRONLY)
    os.write(writer, b"waiting")
    fcntl.fcntl(writer, 1031, 16384)
    lonely = os.open(scratch("b"), os.O_RDONLY | os.O_NONBLOCK)
    both = os.open(scratch("c"), os.O_RDWR)
    os.write(both, b"self")
    yield
    same("data", os.read(reader, 99), b"waiting")
    same("size", fcntl.fcntl(reader, 1032), 16384)
    same("blocking", (os.get_blocking(reader), os.get_blocking(writer)), (False, True))
    os.write(os.open(scratch("a"), os.O_WRONLY), b"by name")
    same("by its name", os.read(reader, 99), b"by name")
    same("no writer", os.read(lonely, 9), b"")
    same("both", os.read(both, 99), b"self")
