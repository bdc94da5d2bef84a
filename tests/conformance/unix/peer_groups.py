"""SO_PEERGROUPS: the groups of who has made the pair and of who listens"""
import os
import socket
import struct

from case import case, same, scratch

PEERGROUPS = 59


def groups(sock):
    found = sock.getsockopt(socket.SOL_SOCKET, PEERGROUPS, 256)
    return struct.unpack(f"={len(found) // 4}I", found)


@case
def peer_groups():
    own = os.getgroups()
    os.setgroups([5, 7, 4242])
    pair = socket.socketpair()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(scratch("listener"))
    listener.listen(2)
    os.setgroups(own)
    client = socket.socket(socket.AF_UNIX)
    client.connect(scratch("listener"))
    accepted, _ = listener.accept()
    before = [groups(end) for end in (*pair, client, accepted)]
    same("set", before[:3], [(5, 7, 4242)] * 3)
    yield
    same("groups", [groups(end) for end in (*pair, client, accepted)], before)
