"""Connections of unix sockets that wait to be accepted and have not sent anything yet, and who has made them"""
import os
import socket
import struct

from case import case, fork, same, scratch

KINDS = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)


def peer(sock):
    return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


@case
def listening_waits():
    listeners = [socket.socket(socket.AF_UNIX, kind) for kind in KINDS]
    names = [b"\0gantry" + os.urandom(8), scratch("listener")]
    clients = {}
    for listener, name in zip(listeners, names):
        listener.bind(name)
        listener.listen(9)
        # One that was accepted before.
        first = socket.socket(socket.AF_UNIX, listener.type)
        first.connect(name)
        accepted = listener.accept()[0]
        mine = [socket.socket(socket.AF_UNIX, listener.type) for _ in range(3)]
        own = b"\0gantry" + os.urandom(8)
        mine[1].bind(own)
        for client in mine:
            client.connect(name)
        mine[2].shutdown(socket.SHUT_WR)
        clients[listener] = (first, accepted, mine, own)
    told, tell = os.pipe()
    go, start = os.pipe()

    def of_a_child():
        for _, _, mine, _ in clients.values():
            for client in mine:
                client.close()
        client = socket.socket(socket.AF_UNIX)
        os.setresgid(-1, 77, -1)
        os.setresuid(-1, 88, -1)
        client.connect(names[0])
        os.write(tell, b"x")
        os.read(go, 1)
        client.send(b"child")
        client.recv(9)

    child = fork(of_a_child)
    os.read(told, 1)
    yield
    for listener, (first, accepted, mine, own) in clients.items():
        first.send(b"first")
        same("accepted before", accepted.recv(9), b"first")
        same("peers", {peer(client) for client in mine}, {(os.getpid(), os.geteuid(), os.getegid())})
        for number, client in enumerate(mine[:2]):
            client.send(b"%d" % number)
        for number, client in enumerate(mine):
            server, name = listener.accept()
            same("client", peer(server), (os.getpid(), os.geteuid(), os.getegid()))
            same("name", name or b"", own if number == 1 else b"")
            same("data", server.recv(9), b"" if number == 2 else b"%d" % number)
            server.send(b"answer")
            same("answer", client.recv(9), b"answer")
    server = listeners[0].accept()[0]
    same("the child", peer(server), (child, 88, 77))
    os.write(start, b"x")
    same("its data", server.recv(9), b"child")
    server.close()
    os.waitpid(child, 0)
