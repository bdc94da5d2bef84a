"""inotify: watches of a directory and a file, masks, gaps in the numbers"""
import os
import struct

from case import case, libc, same, scratch


@case
def inotify():
    os.mkdir(scratch("dir"))
    open(scratch("file"), "w").close()
    fd = libc.inotify_init1(os.O_NONBLOCK)
    add = lambda name, mask: libc.inotify_add_watch(fd, scratch(name).encode(), mask)
    for at in range(5):
        os.mkdir(scratch(f"gone{at}"))
        libc.inotify_rm_watch(fd, add(f"gone{at}", 0x100))
    os.read(fd, 4096)
    directory, file = add("dir", 0x100 | 0x200), add("file", 2 | 0x80000000)
    yield
    same("numbers", (directory, file), (6, 7))

    def events():
        raw, found = os.read(fd, 4096), []
        while raw:
            wd, mask, _, length = struct.unpack_from("=iIII", raw)
            found.append((wd, mask, raw[16:16 + length].rstrip(b"\0").decode()))
            raw = raw[16 + length:]
        return found

    try:
        same("early events", events(), [])
    except BlockingIOError:
        pass
    open(scratch("dir/new"), "w").close()
    with open(scratch("file"), "w") as out:
        out.write("x")
    same("events", events(), [(6, 0x100, "new"), (7, 2, ""), (7, 0x8000, "")])
    same("next number", add("gone1", 0x100), 8)
