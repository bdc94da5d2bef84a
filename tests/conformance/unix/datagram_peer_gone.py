"""A datagram socket whose peer has closed: sending fails, receiving waits"""
import os
import socket

from case import case, same


@case
def datagram_peer_gone():
    tag = b"\0gantry" + os.urandom(8)
    receiver, sender = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(tag)
    sender.connect(tag)
    receiver.close()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.send(b"rest")
    left.close()
    right.setblocking(False)
    yield
    same("rest", right.recv(9), b"rest")
    try:
        found = right.recv(9)
    except OSError as error:
        found = type(error)
    same("nothing more", found, BlockingIOError)
    for one in (sender, right):
        try:
            found = one.send(b"x")
        except OSError as error:
            found = type(error)
        same("sending", found, ConnectionRefusedError)
