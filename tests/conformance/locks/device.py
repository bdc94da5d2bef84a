"""A lock of /dev/null"""
# refused: only locks of files and directories
import fcntl
import os

from case import case, same


@case
def device():
    first, second = (os.open("/dev/null", os.O_RDWR) for _ in range(2))
    fcntl.flock(first, fcntl.LOCK_EX)
    yield
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise AssertionError("it is free")
    except BlockingIOError:
        pass
