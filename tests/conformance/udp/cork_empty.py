"""A socket with UDP_CORK that holds nothing back"""
import socket

from case import case, same


@case
def cork_empty():
    receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(("127.0.0.1", 0))
    sender.connect(receiver.getsockname())
    sender.setsockopt(socket.IPPROTO_UDP, 1, 1)
    yield
    sender.send(b"first,")
    sender.send(b"second")
    sender.setsockopt(socket.IPPROTO_UDP, 1, 0)
    same("datagram", receiver.recv(99), b"first,second")
