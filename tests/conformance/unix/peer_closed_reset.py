"""A stream whose peer has closed without reading: ECONNRESET is told once"""
import socket

from case import case, same


@case
def peer_closed_reset():
    left, right = socket.socketpair()
    right.send(b"nobody reads this")
    left.close()
    yield
    try:
        found = right.recv(9)
    except OSError as error:
        found = type(error)
    same("first", found, ConnectionResetError)
    same("then", right.recv(9), b"")
