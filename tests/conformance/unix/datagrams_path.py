"""Messages that wait in a datagram socket with a path"""
import socket

from case import case, same, scratch


@case
def datagrams_path():
    receiver, sender = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(scratch("receiver"))
    sender.bind(scratch("sender"))
    sender.sendto(b"x", scratch("receiver"))
    yield
    same("message", receiver.recvfrom(9), (b"x", scratch("sender")))
