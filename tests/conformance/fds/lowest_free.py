"""Gaps between descriptors stay: the next one gets the lowest free number"""
import os

from case import case, same


@case
def lowest_free():
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(12)]
    for fd in fds[1::3]:
        os.close(fd)
    free = fds[1::3]
    yield
    same("open", sorted(map(int, os.listdir("/proc/self/fd"))), sorted([0, 1, 2] + [fd for fd in fds if fd not in free] + [free[0]]))
    same("next", [os.dup(0) for _ in free], free)
