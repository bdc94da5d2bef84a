"""Unread datagrams at a socket that asks where they were sent to (IP_PKTINFO), how far and with which service"""
import socket

from case import case, same

IP = socket.IPPROTO_IP


@case
def packet_info():
    receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(("0.0.0.0", 0))
    for name in (8, 12, 13):
        receiver.setsockopt(IP, name, 1)
    sender.bind(("127.0.0.1", 0))
    sender.setsockopt(IP, socket.IP_TTL, 17)
    sender.setsockopt(IP, socket.IP_TOS, 0x48)
    sender.sendto(b"data", ("127.0.0.5", receiver.getsockname()[1]))
    yield
    data, told, _flags, source = receiver.recvmsg(99, 512)
    same("data", (data, source), (b"data", sender.getsockname()))
    told = {kind: value for _level, kind, value in told}
    same("sent to", told[8][8:12], socket.inet_aton("127.0.0.5"))
    same("time to live and service", (told[2][0], told[1][0]), (17, 0x48))
