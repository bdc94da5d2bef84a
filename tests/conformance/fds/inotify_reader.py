"""A thread that waits for events of inotify"""
import os
import threading

from case import case, libc, same, scratch


@case
def inotify_reader():
    os.mkdir(scratch("dir"))
    fd = libc.inotify_init1(0)
    libc.inotify_add_watch(fd, scratch("dir").encode(), 0x100)
    found = []
    thread = threading.Thread(target=lambda: found.append(os.read(fd, 4096)[16:19]), daemon=True)
    thread.start()
    yield
    same("before", found, [])
    open(scratch("dir/new"), "w").close()
    thread.join(10)
    same("event", found, [b"new"])
