"""A multipath TCP socket"""
# refused: MPTCP
import socket

from case import case


@case
def mptcp():
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    yield
    socket.create_connection(listener.getsockname())
    listener.accept()
