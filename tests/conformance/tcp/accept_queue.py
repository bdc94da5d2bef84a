"""A connection that waits for accept"""
# refused: wait to be accepted
import socket

from case import case, same


@case
def accept_queue():
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    client.sendall(b"first")
    yield
    same("data", listener.accept()[0].recv(9), b"first")
