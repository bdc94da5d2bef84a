"""Clients of a listening socket that have names of their own"""
import socket

from case import case, same, scratch


@case
def named_clients():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(scratch("server"))
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.bind(scratch("client"))
    client.connect(scratch("server"))
    server = listener.accept()[0]
    yield
    same("names", (client.getsockname(), server.getpeername()), (scratch("client"),) * 2)
    same("the server's", (server.getsockname(), client.getpeername()), (scratch("server"),) * 2)
    client.send(b"x")
    same("data", server.recv(9), b"x")
