"""A message whose sender has closed: its name"""
import os
import socket

from case import case, same


@case
def datagram_sender_gone():
    tag = b"\0gantry" + os.urandom(8)
    receiver, sender = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(tag + b"r")
    sender.bind(tag + b"s")
    sender.sendto(b"x", tag + b"r")
    sender.close()
    yield
    same("message and sender", receiver.recvfrom(9), (b"x", tag + b"s"))
