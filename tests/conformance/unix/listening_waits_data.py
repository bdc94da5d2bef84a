"""Connections of a unix socket that wait to be accepted and have sent something"""
# refused: wait to be accepted
import os
import socket

from case import case, same


@case
def listening_waits_data():
    listener, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind(b"\0gantry" + os.urandom(8))
    listener.listen()
    client.connect(listener.getsockname())
    client.send(b"x")
    yield
    same("data", listener.accept()[0].recv(9), b"x")
