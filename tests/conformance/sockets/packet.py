"""A packet socket"""
# refused: packet socket
import socket

from case import case, same


@case
def packet():
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    kind = sock.type
    yield
    same("type", sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), int(kind))
