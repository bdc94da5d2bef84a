"""A terminal opened through its master (TIOCGPTPEER), several descriptions of one"""
import fcntl
import os

from case import case, libc, same


@case
def peer():
    master, slave = os.openpty()
    other = libc.ioctl(master, 0x5441, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    third = os.open(os.ttyname(slave), os.O_WRONLY | os.O_NOCTTY)
    # O_LARGEFILE, which open(2) adds, means nothing here.
    modes = lambda: [fcntl.fcntl(fd, fcntl.F_GETFL) & ~0o100000 for fd in (master, slave, other, third)]
    before = modes()
    yield
    same("modes", modes(), before)
    os.write(third, b"x")
    same("data", os.read(master, 9), b"x")
    os.write(master, b"y\n")
    same("input", os.read(other, 9), b"y\n")
