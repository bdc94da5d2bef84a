"""Options: buffers, time limits, priority, mark, PASSCRED, PASSSEC, time stamps, low water, linger"""
import os
import socket
import struct

from case import case, same

S = socket.SOL_SOCKET


@case
def options():
    wanted = []
    for kind in (1, 2, 5):
        for one in socket.socketpair(socket.AF_UNIX, kind):
            one.setsockopt(S, socket.SO_SNDBUF, 40_000 + kind)
            one.setsockopt(S, socket.SO_RCVBUF, 50_000 + kind)
            one.setsockopt(S, socket.SO_RCVTIMEO, struct.pack("=qq", 3, 250_000))
            one.setsockopt(S, socket.SO_SNDTIMEO, struct.pack("=qq", 5, 0))
            one.setsockopt(S, 12, 4)
            one.setsockopt(S, 16, 1)
            one.setsockopt(S, 34, 1)
            one.setsockopt(S, 29, 1)
            one.setsockopt(S, 18, 3)
            one.setsockopt(S, 13, struct.pack("=ii", 1, 9))
            one.setsockopt(S, 9, 1)
            names = (7, 8, 20, 21, 12, 16, 34, 29, 18, 13, 9, 3, 76)
            wanted.append((one, names, [one.getsockopt(S, name, 16) for name in names]))
    yield
    for one, names, before in wanted:
        for name, value in zip(names, before):
            same(f"option {name} of kind {one.type}", one.getsockopt(S, name, 16), value)
