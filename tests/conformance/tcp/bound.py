"""Sockets that are bound and neither listen nor are connected; one to a port of its own, one to an address alone"""
import errno
import socket

from case import case, same


@case
def bound():
    first, second = socket.socket(), socket.socket(socket.AF_INET6)
    first.bind(("127.0.0.1", 0))
    second.bind(("::1", 0))
    names = [first.getsockname(), second.getsockname()]
    address = socket.socket()
    address.setsockopt(socket.IPPROTO_IP, 24, 1)
    address.bind(("127.0.0.77", 0))
    yield
    same("names", [first.getsockname(), second.getsockname()], names)
    other = socket.socket()
    try:
        other.bind(names[0])
        raise AssertionError("the port is free")
    except OSError as error:
        same("error", error.errno, errno.EADDRINUSE)
    first.listen(1)
    socket.create_connection(names[0])
    same("peer", address.getsockname()[0], "127.0.0.77")
