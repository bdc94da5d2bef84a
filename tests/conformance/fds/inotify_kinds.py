"""inotify watches of a symbolic link itself, a fifo and a socket's name, once only, and without what is unlinked"""
import ctypes
import os
import select
import socket
import struct

from case import case, libc, same, scratch

ONLY_ONCE, NOT_UNLINKED, DONT_FOLLOW = 0x80000000, 0x4000000, 0x2000000


@case
def inotify_kinds():
    fd = libc.inotify_init1(os.O_NONBLOCK)
    os.mkdir(scratch("dir"))
    os.symlink("nowhere", scratch("link"))
    os.mkfifo(scratch("fifo"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(scratch("sock"))
    watch = lambda name, mask: libc.inotify_add_watch(fd, scratch(name).encode(), ctypes.c_uint32(mask))
    # IN_ATTRIB
    numbers = [watch("link", 4 | DONT_FOLLOW), watch("fifo", 4), watch("sock", 4), watch("dir", 4 | 0x100 | ONLY_ONCE)]
    assert min(numbers) > 0
    yield
    same("quiet", select.select([fd], [], [], 0)[0], [])

    def events():
        data, found = os.read(fd, 65536), []
        while data:
            wd, mask, _, length = struct.unpack_from("iIII", data)
            found.append((wd, mask))
            data = data[16 + length :]
        return found

    os.chown(scratch("link"), os.getuid(), os.getgid(), follow_symlinks=False)
    same("link", events(), [(numbers[0], 4)])
    os.chmod(scratch("fifo"), 0o700)
    same("fifo", events(), [(numbers[1], 4)])
    os.chmod(scratch("sock"), 0o700)
    same("socket", events(), [(numbers[2], 4)])
    open(scratch("dir/file"), "w").close()
    # IN_CREATE, IN_IGNORED
    same("once", events(), [(numbers[3], 0x100), (numbers[3], 0x8000)])
