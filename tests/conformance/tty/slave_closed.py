"""A master whose terminal was closed by all"""
import errno
import os
import select

from case import case, same


@case
def slave_closed():
    master, slave = os.openpty()
    name = os.ttyname(slave)
    os.close(slave)
    yield
    poll = select.poll()
    poll.register(master, select.POLLIN)
    same("poll", poll.poll(0), [(master, select.POLLHUP)])
    try:
        os.read(master, 9)
        raise AssertionError("it was read")
    except OSError as error:
        same("error", error.errno, errno.EIO)
    slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
    os.write(slave, b"again")
    same("opened again", os.read(master, 9), b"again")
