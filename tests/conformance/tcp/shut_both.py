"""A connection that one side has shut down for both directions"""
import socket

from case import case, same, tcp_pair


@case
def shut_both():
    left, right = tcp_pair()
    left.sendall(b"last")
    left.shutdown(socket.SHUT_RDWR)
    left.settimeout(2)
    yield
    same("nothing is read", left.recv(9), b"")
    same("data", (right.recv(9), right.recv(9)), (b"last", b""))
