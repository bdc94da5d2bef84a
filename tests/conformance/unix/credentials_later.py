"""Sockets with SO_PASSCRED and SO_PASSPIDFD and nothing that waits"""
import os
import socket
import struct

from case import case, same

SO_PASSPIDFD = 76


@case
def credentials_later():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for option in (socket.SO_PASSCRED, SO_PASSPIDFD):
        right.setsockopt(socket.SOL_SOCKET, option, 1)
    yield
    left.send(b"x")
    _, control, _, _ = right.recvmsg(9, 100)
    found = {kind: data for _, kind, data in control}
    same("credentials", struct.unpack("=iII", found[2]), (os.getpid(), 0, 0))
    same("pidfd", 4 in found, True)
