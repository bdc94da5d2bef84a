"""An urgent byte in the stream (SO_OOBINLINE) that was not read"""
# refused: urgent
import fcntl
import socket
import struct

from case import case, same, tcp_pair


@case
def urgent_inline():
    left, right = tcp_pair()
    right.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    left.sendall(b"before")
    left.send(b"!", socket.MSG_OOB)
    left.sendall(b"after")
    yield
    same("up to the mark", right.recv(99), b"before")
    # SIOCATMARK
    same("at the mark", struct.unpack("i", fcntl.ioctl(right, 0x8905, bytes(4)))[0], 1)
    same("after it", right.recv(99), b"!after")
