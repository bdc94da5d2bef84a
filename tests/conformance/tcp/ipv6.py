"""IPv6: a connection with data both ways, a listener"""
import socket

from case import case, same, tcp_pair


@case
def ipv6():
    left, right = tcp_pair("::1")
    listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    left.sendall(b"to the right")
    right.sendall(b"to the left")
    names = [end.getsockname() for end in (left, right, listener)]
    yield
    same("data", (left.recv(99), right.recv(99)), (b"to the left", b"to the right"))
    same("names", [end.getsockname() for end in (left, right, listener)], names)
    client = socket.create_connection(listener.getsockname()[:2])
    client.sendall(b"new")
    same("new connection", listener.accept()[0].recv(9), b"new")
