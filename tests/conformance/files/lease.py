"""A write lease on a file"""
# refused: lease
import fcntl
import os

from case import case, same, scratch


@case
def lease():
    fd = os.open(scratch("leased"), os.O_CREAT | os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    yield
    same("lease", fcntl.fcntl(fd, fcntl.F_GETLEASE), fcntl.F_WRLCK)
