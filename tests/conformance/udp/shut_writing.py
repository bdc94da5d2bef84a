"""A socket that was shut down for writing alone"""
import socket

from case import case


@case
def shut_writing():
    sock, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    other.bind(("127.0.0.1", 0))
    sock.connect(other.getsockname())
    sock.shutdown(socket.SHUT_WR)
    yield
    try:
        sock.send(b"x")
    except BrokenPipeError:
        return
    raise AssertionError("it sends")
