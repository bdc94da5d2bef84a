"""A read lease on a file"""
# refused: lease
import fcntl
import os

from case import case, same, scratch


@case
def lease_read():
    os.close(os.open(scratch("leased"), os.O_CREAT))
    fd = os.open(scratch("leased"), os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    yield
    same("lease", fcntl.fcntl(fd, fcntl.F_GETLEASE), fcntl.F_RDLCK)
