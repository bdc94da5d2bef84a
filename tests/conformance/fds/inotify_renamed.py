"""An inotify watch of a directory that was renamed since"""
import os
import struct

from case import case, libc, same, scratch


@case
def inotify_renamed():
    os.mkdir(scratch("a"))
    fd = libc.inotify_init1(0)
    libc.inotify_add_watch(fd, scratch("a").encode(), 0x100)
    os.rename(scratch("a"), scratch("b"))
    yield
    open(scratch("b/new"), "w").close()
    raw = os.read(fd, 4096)
    same("event", (struct.unpack_from("=iIII", raw)[:2], raw[16:19]), ((1, 0x100), b"new"))
