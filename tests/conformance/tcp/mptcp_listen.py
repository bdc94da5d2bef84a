"""A multipath TCP socket that listens, as those of Go do, and its connections with peers that speak plain TCP"""
import socket

from case import case, same

MPTCP = 262


def protocol(sock):
    return sock.getsockopt(socket.SOL_SOCKET, 38)


@case
def mptcp_listen():
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(7)
    six = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, MPTCP)
    six.bind(("::", 0))
    six.listen(5)
    fresh = socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP)
    client = socket.create_connection(listener.getsockname())
    server = listener.accept()[0]
    same("protocol of the connection", protocol(server), socket.IPPROTO_TCP)
    client.send(b"unread")
    name = listener.getsockname()
    yield
    same("data", server.recv(9), b"unread")
    for sock in listener, six, fresh:
        same("protocol", protocol(sock), MPTCP)
    same("name", listener.getsockname(), name)
    same("SO_KEEPALIVE", listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
    same("TCP_NODELAY", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)
    # tcpi_sacked: the backlog
    same("backlog", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)[28:], (7).to_bytes(4, "little"))
    again = socket.create_connection(listener.getsockname())
    other = listener.accept()[0]
    other.send(b"hello")
    same("a new connection", again.recv(9), b"hello")
    socket.create_connection(("127.0.0.1", six.getsockname()[1]))
    same("over IPv4", six.accept()[1][0], "::ffff:127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, MPTCP) as third:
        third.connect(listener.getsockname())
        same("a multipath connection", protocol(listener.accept()[0]), MPTCP)
