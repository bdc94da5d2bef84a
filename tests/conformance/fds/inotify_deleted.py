"""An inotify watch of a file that has no name any more and is open"""
# refused: no path in the container
import os

from case import case, libc, same, scratch


@case
def inotify_deleted():
    file = os.open(scratch("file"), os.O_CREAT | os.O_RDWR)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    watch = libc.inotify_add_watch(fd, scratch("file").encode(), 2)
    os.unlink(scratch("file"))
    yield
    os.write(file, b"x")
    same("event", os.read(fd, 4096)[:4], watch.to_bytes(4, "little"))
