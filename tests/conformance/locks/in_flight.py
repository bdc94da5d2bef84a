"""flock of a description that is only in a message nobody has received"""
import fcntl
import os
import socket

from case import case, same, scratch


@case
def in_flight():
    fd = os.open(scratch("lock"), os.O_CREAT | os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    left, right = socket.socketpair()
    socket.send_fds(left, [b"x"], [fd])
    os.close(fd)
    yield
    other = os.open(scratch("lock"), os.O_RDWR)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = "free"
    except BlockingIOError:
        found = "held"
    same("the lock", found, "held")
    os.close(socket.recv_fds(right, 9, 9)[1][0])
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
