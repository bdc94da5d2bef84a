"""A listener of both IPv6 and IPv4, and a connection of IPv4 that it accepted"""
import socket

from case import case, same


@case
def dual_stack():
    listener = socket.socket(socket.AF_INET6)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", 0))
    listener.listen(9)
    port = listener.getsockname()[1]
    clients = [socket.create_connection((host, port)) for host in ("127.0.0.1", "::1")]
    servers = [listener.accept()[0] for _ in clients]
    for server in servers:
        server.sendall(b"waiting")
    names = [server.getpeername() for server in servers]
    yield
    same("names", [server.getpeername() for server in servers], names)
    for client, server in zip(clients, servers):
        client.sendall(b"answer")
        same("data", (client.recv(9), server.recv(9)), (b"waiting", b"answer"))
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, port)).close()
        listener.accept()[0].close()
