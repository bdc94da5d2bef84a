"""Extension headers of IPv6 that go with every packet (IPV6_DSTOPTS)"""
# refused: extension headers
import socket

from case import case, same

PADDING = bytes([0, 0, 1, 4, 0, 0, 0, 0])


@case
def extension_headers():
    sock = socket.socket(socket.AF_INET6)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, PADDING)
    yield
    same("header", sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, 64), PADDING)
