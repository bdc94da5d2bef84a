"""Edges of epoll that were seen already, of data that nobody has read and of connections that can be written"""
import os
import select
import socket

from case import case, same

BOTH = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


@case
def epoll_edge_seen():
    sets = select.epoll()
    reader, writer = os.pipe()
    sets.register(reader, select.EPOLLIN | select.EPOLLET)
    # Under a number that leads elsewhere by now.
    other, end = os.pipe()
    kept = os.dup(other)
    sets.register(other, select.EPOLLIN | select.EPOLLET)
    os.dup2(reader, other)
    listener = socket.create_server(("127.0.0.1", 0))
    tcp = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    unix, peer = socket.socketpair()
    sets.register(tcp, BOTH)
    sets.register(unix, BOTH)
    os.write(writer, b"x")
    os.write(end, b"x")
    accepted.send(b"x")
    seen = dict(sets.poll(1))
    while len(seen) < 4 or not seen[tcp.fileno()] & select.EPOLLIN:
        seen.update(sets.poll(1))
    same("nothing is left", sets.poll(0), [])
    yield
    found = sets.poll(0)
    same("data", os.read(reader, 9), b"x")
    same("data of the other", os.read(kept, 9), b"x")
    same("data of the connection", tcp.recv(9), b"x")
    os.write(writer, b"y")
    same("the next edge", sets.poll(1), [(reader, select.EPOLLIN)])
    os.write(end, b"y")
    same("the next edge of the other", sets.poll(1), [(other, select.EPOLLIN)])
    accepted.send(b"y")
    same("the next edge of the connection", sets.poll(1), [(tcp.fileno(), select.EPOLLIN | select.EPOLLOUT)])
    peer.close()
    found_last = dict(sets.poll(1))
    same("the end of the other", bool(found_last[unix.fileno()] & select.EPOLLRDHUP), True)
    same("edges that were seen", found, [])
