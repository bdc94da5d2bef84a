"""The names of an accepted connection whose client has closed"""
import os
import socket

from case import case, same


@case
def peer_closed_names():
    name = b"\0gantry" + os.urandom(8)
    listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen()
    client.connect(name)
    server = listener.accept()[0]
    client.send(b"x")
    client.close()
    yield
    same("data", (server.recv(9), server.recv(9)), (b"x", b""))
    same("own name", server.getsockname(), name)
