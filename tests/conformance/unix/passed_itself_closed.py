"""A connection of which one end is only in a message of a third socket"""
# refused: outside of the container
import socket

from case import case, same


@case
def passed_itself_closed():
    left, right = socket.socketpair()
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    socket.send_fds(one, [b"x"], [left.fileno()])
    left.close()
    right.send(b"hello")
    yield
    left = socket.socket(fileno=socket.recv_fds(other, 9, 9)[1][0])
    same("data", left.recv(9), b"hello")
    left.send(b"back")
    same("back", right.recv(9), b"back")
