"""A route socket with an answer that was not read"""
# refused: messages that wait
import select
import socket
import struct

from case import case, same, until


@case
def netlink_unread():
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    # RTM_GETLINK of the loopback.
    sock.send(struct.pack("=IHHIIBxHiII", 32, 18, 1, 1, 0, 0, 0, 1, 0, 0))
    until("the answer", lambda: select.select([sock], [], [], 0)[0])
    yield
    same("answer", struct.unpack_from("=IH", sock.recv(65536))[1], 16)
