"""A pidfd of a child that was waited for"""
# refused: pidfd
import os
import select

from case import case, fork, same


@case
def pidfd_reaped():
    child = fork(lambda: os._exit(7))
    fd = os.pidfd_open(child)
    os.waitpid(child, 0)
    yield
    same("ended", select.select([fd], [], [], 0)[0], [fd])
