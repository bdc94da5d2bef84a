"""SO_PEERCRED: who has made the pair"""
# lost: SO_PEERCRED
import os
import socket
import struct

from case import case, same


@case
def peer_credentials():
    left, right = socket.socketpair()
    yield
    found = struct.unpack("=iII", left.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    same("SO_PEERCRED", found, (os.getpid(), 0, 0))
