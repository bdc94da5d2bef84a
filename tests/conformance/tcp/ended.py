"""A connection that both sides have ended, with data before the end"""
# refused: has ended
import socket

from case import case, same, tcp_pair


@case
def ended():
    left, right = tcp_pair()
    for end in (left, right):
        end.sendall(b"both")
        end.shutdown(socket.SHUT_WR)
    yield
    for end in (left, right):
        same("data", (end.recv(99), end.recv(99)), (b"both", b""))
