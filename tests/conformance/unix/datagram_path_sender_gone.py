"""A message whose sender had a path as its name and has closed"""
# refused: sender has closed
import socket

from case import case, same, scratch


@case
def datagram_path_sender_gone():
    receiver, sender = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(scratch("receiver"))
    sender.bind(scratch("sender"))
    sender.sendto(b"x", scratch("receiver"))
    sender.close()
    yield
    same("message", receiver.recvfrom(9), (b"x", scratch("sender")))
