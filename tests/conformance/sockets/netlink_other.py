"""A netlink socket of the audit system"""
# refused: netlink
import socket

from case import case, same


@case
def netlink_other():
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
    kind = sock.type
    yield
    same("type", sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), int(kind))
