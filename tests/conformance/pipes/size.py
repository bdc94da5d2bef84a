"""Pipes of one page and of a megabyte (F_SETPIPE_SZ), full and with room"""
import fcntl
import os

from case import case, same


@case
def size():
    wanted = {}
    for capacity in (4096, 8192, 1 << 20):
        for fill in (1, capacity - 1, capacity):
            reader, writer = os.pipe2(os.O_NONBLOCK)
            fcntl.fcntl(writer, 1031, capacity)
            os.write(writer, b"z" * fill)
            wanted[reader, writer] = (capacity, fill)
    yield
    for (reader, writer), (capacity, fill) in wanted.items():
        same("size", (fcntl.fcntl(reader, 1032), fcntl.fcntl(writer, 1032)), (capacity, capacity))
        found = b""
        try:
            while True:
                found += os.read(reader, 1 << 20)
        except BlockingIOError:
            pass
        same("data", found == b"z" * fill, True)
        same("room", os.write(writer, b"w" * capacity), capacity)
