"""UDP-Lite, with how much of a datagram is covered by its checksum"""
import socket

from case import case, same

UDPLITE = 136


@case
def lite():
    receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM, UDPLITE) for _ in range(2))
    receiver.bind(("127.0.0.1", 0))
    # UDPLITE_SEND_CSCOV, UDPLITE_RECV_CSCOV
    sender.setsockopt(UDPLITE, 10, 20)
    receiver.setsockopt(UDPLITE, 11, 12)
    yield
    same("coverage", (sender.getsockopt(UDPLITE, 10), receiver.getsockopt(UDPLITE, 11)), (20, 12))
    sender.sendto(b"x" * 100, receiver.getsockname())
    same("data", receiver.recv(200), b"x" * 100)
