"""A connection on which an urgent byte was read already"""
import socket

from case import case, same, tcp_pair


@case
def urgent_read():
    left, right = tcp_pair()
    left.sendall(b"before")
    left.send(b"!", socket.MSG_OOB)
    same("urgent byte", right.recv(1, socket.MSG_OOB), b"!")
    same("before", right.recv(99), b"before")
    left.sendall(b"after")
    same("after", right.recv(99), b"after")
    yield
    left.sendall(b"more")
    same("data", right.recv(99), b"more")
