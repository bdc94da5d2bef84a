"""Names of unix sockets: paths, abstract ones with zeros, listening, connected and accepted"""
import os
import socket

from case import case, same, scratch


@case
def names():
    tag = b"\0gantry\0" + os.urandom(8) + b"\0"
    wanted = []
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        for name in (scratch(f"name{int(kind)}"), tag + b"%d" % kind):
            listener = socket.socket(socket.AF_UNIX, kind)
            listener.bind(name)
            listener.listen(7)
            client = socket.socket(socket.AF_UNIX, kind)
            client.connect(name)
            server = listener.accept()[0]
            client.send(b"hello")
            wanted.append((name, listener, client, server))
    os.chmod(scratch("name1"), 0o620)
    yield
    for name, listener, client, server in wanted:
        same("names", [one.getsockname() for one in (listener, server, client)], [name, name, ""])
        same("peers", (client.getpeername(), server.getpeername()), (name, ""))
        same("data", server.recv(9), b"hello")
        another = socket.socket(socket.AF_UNIX, client.type)
        another.connect(name)
        accepted = listener.accept()[0]
        another.send(b"new")
        same("a new one", accepted.recv(9), b"new")
    same("mode", os.stat(scratch("name1")).st_mode & 0o777, 0o620)
