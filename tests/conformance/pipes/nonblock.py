"""O_NONBLOCK on each end of a pipe by itself"""
import os

from case import case, same


@case
def nonblock():
    wanted = []
    for read in (True, False):
        for write in (True, False):
            reader, writer = os.pipe()
            os.set_blocking(reader, read)
            os.set_blocking(writer, write)
            wanted.append((reader, writer, read, write))
    yield
    for reader, writer, read, write in wanted:
        same("blocking", (os.get_blocking(reader), os.get_blocking(writer)), (read, write))
