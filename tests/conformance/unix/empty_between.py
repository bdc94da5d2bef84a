"""Empty messages between others, first and last, in datagram and seqpacket sockets"""
import socket

from case import case, same

SENT = [b"", b"one", b"", b"", b"two", b""]


@case
def empty_between():
    pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)]
    for left, right in pairs:
        for message in SENT:
            left.send(message)
    yield
    for left, right in pairs:
        right.setblocking(False)
        found = []
        try:
            while len(found) < 9:
                found.append(right.recv(99))
        except BlockingIOError:
            pass
        same(f"messages of kind {right.type}", found, SENT)
