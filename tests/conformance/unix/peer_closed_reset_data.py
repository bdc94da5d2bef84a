"""A stream whose peer has sent, not read and closed: the data first, then ECONNRESET, then the end"""
import socket

from case import case, same


@case
def peer_closed_reset_data():
    left, right = socket.socketpair()
    right.send(b"nobody reads this")
    left.send(b"last words")
    left.close()
    yield
    found = []
    for _ in range(3):
        try:
            found.append(right.recv(99))
        except ConnectionResetError:
            found.append("reset")
    same("in turn", found, [b"last words", "reset", b""])
