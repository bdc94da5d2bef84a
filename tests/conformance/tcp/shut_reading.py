"""A connection that was shut down for reading"""
import socket

from case import case, same, tcp_pair


@case
def shut_reading():
    left, right = tcp_pair()
    left.shutdown(socket.SHUT_RD)
    same("nothing is read", left.recv(9), b"")
    left.settimeout(2)
    yield
    same("nothing is read", left.recv(9), b"")
    left.sendall(b"still writes")
    same("data", right.recv(99), b"still writes")
