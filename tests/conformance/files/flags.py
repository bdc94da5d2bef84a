"""Flags of open files: O_SYNC, O_DSYNC, O_DIRECT, O_NONBLOCK, O_NOATIME, O_NOFOLLOW, access modes"""
import fcntl
import os

from case import case, same, scratch


@case
def flags():
    with open(scratch("data"), "wb") as file:
        file.write(b"x" * 8192)
    wanted = {}
    for extra in (os.O_SYNC, os.O_DSYNC, os.O_DIRECT, os.O_NONBLOCK, os.O_NOATIME, os.O_NOFOLLOW, os.O_APPEND):
        for access in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            fd = os.open(scratch("data"), access | extra)
            wanted[fd] = fcntl.fcntl(fd, fcntl.F_GETFL)
    later = os.open(scratch("data"), os.O_RDWR)
    fcntl.fcntl(later, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK | os.O_NOATIME)
    wanted[later] = fcntl.fcntl(later, fcntl.F_GETFL)
    yield
    for fd, before in wanted.items():
        same(f"flags of {before:#o}", fcntl.fcntl(fd, fcntl.F_GETFL), before)
