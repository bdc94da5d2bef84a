"""An open file of /proc of a process that has ended"""
# refused: has ended
import errno
import os

from case import case, fork, forever, same


@case
def proc_gone():
    child = fork(forever)
    fd = os.open(f"/proc/{child}/status", os.O_RDONLY)
    os.kill(child, 9)
    os.waitpid(child, 0)
    yield
    try:
        os.read(fd, 10)
        raise AssertionError("it can be read")
    except OSError as error:
        same("error", error.errno, errno.ESRCH)
