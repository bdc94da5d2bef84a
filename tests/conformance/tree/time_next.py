"""A process whose children would be in another time namespace, which has none yet"""
# not: move: a container may make no namespace
# refused: namespace
import os

from case import case, same, syscall

UNSHARE, CLONE_NEWTIME = 272, 0x80


@case
def time_next():
    syscall(UNSHARE, CLONE_NEWTIME)
    of_children = os.readlink("/proc/self/ns/time_for_children")
    yield
    same("namespace", os.readlink("/proc/self/ns/time_for_children"), of_children)
