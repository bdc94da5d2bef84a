"""A seqpacket socket whose peer has closed without reading: ECONNRESET waits to be told"""
# refused: an error that waits
import socket

from case import case, same


@case
def seqpacket_reset():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    right.send(b"nobody reads this")
    left.close()
    yield
    try:
        found = right.recv(9)
    except ConnectionResetError:
        found = "reset"
    same("error", found, "reset")
