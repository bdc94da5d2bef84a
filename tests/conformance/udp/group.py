"""Four sockets of one address (SO_REUSEPORT), each with datagrams of its own"""
import select
import socket

from case import case, same


@case
def group():
    sockets, port = [], 0
    for _ in range(4):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port))
        port = sock.getsockname()[1]
        sockets.append(sock)
    senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(30)]
    for number, sender in enumerate(senders):
        sender.sendto(b"%d" % number, ("127.0.0.1", port))
    # Which one gets what is the kernel's choice.
    before = [peek(sock) for sock in sockets]
    yield
    same("first in each", [peek(sock) for sock in sockets], before)
    found = set()
    while ready := select.select(sockets, [], [], 0)[0]:
        found.add(int(ready[0].recv(9)))
    same("all of them", found, set(range(30)))


def peek(sock):
    return sock.recv(9, socket.MSG_PEEK) if select.select([sock], [], [], 0)[0] else None
