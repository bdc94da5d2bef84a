"""A pidfd of a child that has ended and was not waited for"""
import os
import select

from case import case, fork, same


@case
def pidfd_zombie():
    child = fork(lambda: os._exit(7))
    fd = os.pidfd_open(child)
    same("ended", select.select([fd], [], [], 10)[0], [fd])
    yield
    same("ended", select.select([fd], [], [], 0)[0], [fd])
    found = os.waitid(os.P_PIDFD, fd, os.WEXITED)
    same("waited for", (found.si_pid, found.si_status), (child, 7))
