"""A listener whose closed connections are in TIME_WAIT"""
import socket

from case import case, same


@case
def time_wait():
    listener = socket.create_server(("127.0.0.1", 0))

    def connect():
        client = socket.create_connection(listener.getsockname())
        server = listener.accept()[0]
        server.close()
        same("end", client.recv(1), b"")
        client.close()

    for _ in range(5):
        connect()
    yield
    for _ in range(5):
        connect()
