"""A message that waits with its sender's credentials (SO_PASSCRED)"""
# refused: credentials
import os
import socket
import struct

from case import case, fork, same


@case
def credentials_waiting():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    right.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def work():
        os.setresgid(77, 77, 77)
        os.setresuid(88, 88, 88)
        left.send(b"x")

    child = fork(work)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    yield
    data, control, _, _ = right.recvmsg(9, 100)
    same("credentials", struct.unpack("=iII", control[0][2]), (child, 88, 77))
