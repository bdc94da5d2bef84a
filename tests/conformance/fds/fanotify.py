"""A fanotify group without a mark"""
# refused: fanotify
# not: move: a container lacks CAP_SYS_ADMIN
import os

from case import case, syscall


@case
def fanotify():
    fd = syscall(300, 0, os.O_RDONLY)
    yield
    os.fstat(fd)
