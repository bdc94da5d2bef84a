"""A socket that was shut down for reading"""
import socket

from case import case, same


@case
def shut_reading():
    sock, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    other.bind(("127.0.0.1", 0))
    sock.connect(other.getsockname())
    sock.shutdown(socket.SHUT_RD)
    yield
    same("end", sock.recv(9), b"")
    sock.send(b"x")
    same("writes", other.recv(9), b"x")
