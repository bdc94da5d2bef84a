"""inotify events that wait to be read"""
# refused: inotify events wait
import os
import struct

from case import case, libc, same, scratch


@case
def inotify_queued():
    fd = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(fd, scratch("").encode(), 0x100)
    open(scratch("new"), "w").close()
    yield
    same("event", struct.unpack_from("=iIII", os.read(fd, 4096))[:2], (1, 0x100))
