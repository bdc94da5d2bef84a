"""Datagram sockets with names: connected one way, both ways, with messages of several senders"""
import os
import socket

from case import case, same


@case
def datagrams():
    tag = b"\0gantry" + os.urandom(8)
    sockets = {}
    for name in (b"r", b"a", b"b"):
        sockets[name] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sockets[name].bind(tag + name)
    receiver = sockets[b"r"]
    for name in (b"a", b"b"):
        sockets[name].connect(tag + b"r")
    for name in (b"a", b"b", b"a"):
        sockets[name].send(b"from " + name)
    nobody = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    nobody.sendto(b"", tag + b"r")
    nobody.sendto(b"nobody", tag + b"r")
    yield
    found = [receiver.recvfrom(99) for _ in range(5)]
    named = [(b"from " + name, tag + name) for name in (b"a", b"b", b"a")]
    same("messages", found, named + [(b"", None), (b"nobody", None)])
    same("connected", sockets[b"a"].getpeername(), tag + b"r")
    receiver.sendto(b"back", tag + b"b")
    same("back", sockets[b"b"].recvfrom(9), (b"back", tag + b"r"))
