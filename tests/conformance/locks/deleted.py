"""Locks of a file that has no name any more"""
import fcntl
import os

from case import case, same, scratch


@case
def deleted():
    first = os.open(scratch("lock"), os.O_CREAT | os.O_RDWR)
    second = os.open(scratch("lock"), os.O_RDWR)
    os.unlink(scratch("lock"))
    fcntl.flock(first, fcntl.LOCK_EX)
    yield

    def can():
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False

    same("held", can(), False)
    fcntl.flock(first, fcntl.LOCK_UN)
    same("free", can(), True)
