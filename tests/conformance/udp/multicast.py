"""A multicast group that a socket is a member of"""
# refused: multicast
import socket

from case import case, same


@case
def multicast():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    group = socket.inet_aton("239.7.7.7") + socket.inet_aton("127.0.0.1")
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    yield
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, group)
    same("name", sock.getsockname()[0], "127.0.0.1")
