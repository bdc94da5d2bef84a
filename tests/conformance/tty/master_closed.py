"""A terminal whose master has closed: reading ends, writing fails"""
import errno
import os

from case import case, same


@case
def master_closed():
    master, slave = os.openpty()
    os.close(master)
    yield
    same("read", os.read(slave, 9), b"")
    try:
        os.write(slave, b"x")
        raise AssertionError("it was written")
    except OSError as error:
        same("error", error.errno, errno.EIO)
