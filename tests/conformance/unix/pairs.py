"""Pairs of unix sockets of each kind, with data both ways"""
import socket

from case import case, same


@case
def pairs():
    pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in (1, 2, 5)]
    for left, right in pairs:
        left.send(b"to the right")
        left.send(b"again")
        right.send(b"to the left")
    yield
    for left, right in pairs:
        same("right", right.recv(12) + right.recv(12), b"to the rightagain")
        same("left", left.recv(99), b"to the left")
        left.send(b"later")
        same("later", right.recv(99), b"later")
