"""epoll watches a pipe that is open only in a message that nobody has received"""
# refused: outside of the container
import os
import select
import socket

from case import case, same


@case
def epoll_in_flight():
    sets = select.epoll()
    reader, writer = os.pipe()
    sets.register(reader, select.EPOLLIN)
    left, right = socket.socketpair()
    socket.send_fds(left, [b"x"], [reader])
    number = reader
    os.close(reader)
    yield
    os.write(writer, b"x")
    same("event", sets.poll(0), [(number, select.EPOLLIN)])
    fds = socket.recv_fds(right, 9, 9)[1]
    same("data", os.read(fds[0], 9), b"x")
