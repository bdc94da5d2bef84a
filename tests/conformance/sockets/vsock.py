"""A vsock socket"""
# refused: vsock
import socket

from case import case, same


@case
def vsock():
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    kind = sock.type
    yield
    same("type", sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), int(kind))
