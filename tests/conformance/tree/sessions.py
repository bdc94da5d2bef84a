"""Sessions and process groups: a child with both of its own, one in a group of its own, one in its brother's"""
import os

from case import case, forever, fork, same, until


@case
def sessions():
    def alone():
        os.setsid()
        forever()

    def group():
        os.setpgid(0, 0)
        forever()

    first, second, third = fork(alone), fork(group), fork(forever)
    until("the first", lambda: os.getsid(first) == first)
    until("the second", lambda: os.getpgid(second) == second)
    os.setpgid(third, second)
    yield
    own = os.getsid(0)
    same("sessions", [os.getsid(pid) for pid in (first, second, third)], [first, own, own])
    same("groups", [os.getpgid(pid) for pid in (first, second, third)], [first, second, second])
