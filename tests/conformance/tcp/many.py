"""Two hundred connections, each with data of its own, shared with a child that has their other ends"""
import os
import socket

from case import case, forever, fork, same


@case
def many():
    listener = socket.create_server(("127.0.0.1", 0), backlog=300)
    clients, servers = [], []
    for number in range(200):
        clients.append(socket.create_connection(listener.getsockname()))
        servers.append(listener.accept()[0])
        clients[-1].sendall(b"%d" % number)
    reader, writer = os.pipe()
    answer, said = os.pipe()

    def child():
        os.read(reader, 1)
        found = [server.recv(9) for server in servers]
        os.write(said, b"ok" if found == [b"%d" % number for number in range(200)] else b"lost")
        forever()

    fork(child)
    for server in servers:
        server.close()
    yield
    os.write(writer, b"x")
    same("what the child read", os.read(answer, 9), b"ok")
