"""A multipath TCP connection"""
# refused: MPTCP
import socket

from case import case, same


@case
def mptcp():
    listener, client = (socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) for _ in range(2))
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    client.connect(listener.getsockname())
    server = listener.accept()[0]
    yield
    client.send(b"hello")
    same("data", server.recv(9), b"hello")
