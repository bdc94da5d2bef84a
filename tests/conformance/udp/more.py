"""A datagram that is held back (MSG_MORE)"""
# refused: has not left
import socket

from case import case, same


@case
def more():
    receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(("127.0.0.1", 0))
    sender.connect(receiver.getsockname())
    sender.send(b"first,", socket.MSG_MORE)
    yield
    sender.send(b"second")
    same("datagram", receiver.recv(99), b"first,second")
