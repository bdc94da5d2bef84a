"""Signals when a directory changes (F_NOTIFY)"""
# refused: F_NOTIFY
import fcntl
import os
import signal

from case import case, scratch, until

DN_CREATE, DN_MULTISHOT = 4, 1 << 31


@case
def dnotify():
    os.mkdir(scratch("dir"))
    seen = []
    signal.signal(signal.SIGIO, lambda *_: seen.append(1))
    fd = os.open(scratch("dir"), os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_NOTIFY, DN_CREATE | DN_MULTISHOT - (1 << 32))
    yield
    open(scratch("dir/x"), "w").close()
    until("the signal", lambda: seen, 1)
