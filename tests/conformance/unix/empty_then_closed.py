"""A seqpacket socket with an empty message and one behind it, whose peer has closed"""
import socket

from case import case, same


@case
def empty_then_closed():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for message in (b"one", b"", b"two"):
        left.send(message)
    left.close()
    yield
    same("messages", [right.recv(9) for _ in range(4)], [b"one", b"", b"two", b""])
