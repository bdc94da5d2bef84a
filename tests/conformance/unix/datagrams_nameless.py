"""Messages that wait in a datagram socket whose name was removed"""
# refused: has no name any more
import os
import socket

from case import case, same, scratch


@case
def datagrams_nameless():
    receiver, sender = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(scratch("receiver"))
    sender.sendto(b"x", scratch("receiver"))
    os.unlink(scratch("receiver"))
    yield
    same("message", receiver.recv(9), b"x")
