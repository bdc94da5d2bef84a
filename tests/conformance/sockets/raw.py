"""A raw socket"""
# refused: raw socket
import socket

from case import case, same


@case
def raw():
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    kind = sock.type
    yield
    same("type", sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), int(kind))
