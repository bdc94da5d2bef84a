"""A datagram that is held back (UDP_CORK)"""
# refused: UDP_CORK
import socket

from case import case, same


@case
def corked():
    receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(("127.0.0.1", 0))
    sender.connect(receiver.getsockname())
    sender.setsockopt(socket.IPPROTO_UDP, 1, 1)
    sender.send(b"first,")
    yield
    sender.send(b"second")
    sender.setsockopt(socket.IPPROTO_UDP, 1, 0)
    same("datagram", receiver.recv(99), b"first,second")
