"""A file that is truncated and grows again while it is copied"""
import os

from case import case, same, scratch


@case
def truncated():
    fd = os.open(scratch("file"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"start")
    state = [0, b"start"]

    def change():
        state[0] += 1
        os.ftruncate(fd, 0)
        state[1] = b"%d\n" % state[0] * (state[0] % 50 + 1)
        os.pwrite(fd, state[1], 0)

    change()
    yield change
    same("content", os.pread(fd, 10000, 0), state[1])
    same("by its name", open(scratch("file"), "rb").read(), state[1])
