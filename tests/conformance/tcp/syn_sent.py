"""A connection that is just being made: nobody has answered yet"""
import select
import socket

from case import case, same

# IP_MINTTL: what arrives with less is dropped without a word.
MINTTL = 21


@case
def syn_sent():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_IP, MINTTL, 255)
    waiting, shared = socket.socket(), socket.socket()
    for sock in waiting, shared:
        sock.setblocking(False)
    waiting.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    waiting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20000)
    size = waiting.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    # From a port that somebody listens at.
    other = socket.socket()
    for sock in other, shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    other.bind(("127.0.0.1", 0))
    shared.bind(other.getsockname())
    for sock in waiting, shared:
        sock.connect_ex(listener.getsockname())
        # tcpi_state: SYN_SENT
        same("state", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1), b"\x02")
    other.listen(5)
    names = [sock.getsockname() for sock in (waiting, shared)]
    yield
    same("names", [sock.getsockname() for sock in (waiting, shared)], names)
    poll = select.poll()
    for sock in waiting, shared:
        poll.register(sock, select.POLLOUT)
    same("events", poll.poll(0), [])
    same("SO_REUSEADDR", [sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) for sock in (waiting, shared)], [0, 1])
    same("SO_KEEPALIVE", waiting.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
    same("SO_RCVBUF", waiting.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), size)
    listener.setsockopt(socket.IPPROTO_IP, MINTTL, 0)
    listener.settimeout(30)
    same("who connects", sorted(listener.accept()[1] for _ in names), sorted(names))
    for sock in waiting, shared:
        sock.settimeout(10)
        # A second call tells how the first one ended.
        same("connected", sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
        sock.send(b"x")
