"""Unread datagrams of several senders, an empty one and a large one among them"""
import socket

from case import case, same


def udp(host="127.0.0.1"):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    return sock


@case
def unread():
    receiver = udp()
    senders = [udp("127.0.0.1"), udp("127.0.0.9")]
    sent = []

    def change():
        if len(sent) < 60:
            sender = senders[len(sent) % 2]
            data = b"" if len(sent) % 7 == 3 else b"%d" % len(sent) * (5000 if len(sent) == 10 else 1)
            sender.sendto(data, receiver.getsockname())
            sent.append((data, sender.getsockname()))

    change()
    yield change
    receiver.settimeout(5)
    same("datagrams", [receiver.recvfrom(65536) for _ in sent], sent)
    receiver.setblocking(False)
    try:
        raise AssertionError(f"one more: {receiver.recvfrom(99)}")
    except BlockingIOError:
        pass
