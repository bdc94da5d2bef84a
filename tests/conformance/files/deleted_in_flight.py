"""Deleted files that are open only in a message which nobody has received"""
import os
import socket

from case import case, same, scratch


@case
def deleted_in_flight():
    left, right = socket.socketpair()
    for name in ("one", "two"):
        fd = os.open(scratch(name), os.O_CREAT | os.O_RDWR)
        os.pwrite(fd, name.encode(), 5000)
        os.unlink(scratch(name))
        socket.send_fds(left, [b"x"], [fd])
        os.close(fd)
    yield
    for name in ("one", "two"):
        fd = socket.recv_fds(right, 1, 1)[1][0]
        same("content", os.pread(fd, 9, 5000), name.encode())
        same("size", os.fstat(fd).st_size, 5003)
