"""IPv6: unread datagrams, one of them of IPv4 at a socket of both"""
import socket

from case import case, same


@case
def ipv6():
    receiver, sender = (socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(("::", 0))
    port = receiver.getsockname()[1]
    sender.bind(("::1", 0))
    sender.sendto(b"six", ("::1", port))
    four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    four.bind(("127.0.0.1", 0))
    four.sendto(b"four", ("127.0.0.1", port))
    yield
    same("of IPv6", receiver.recvfrom(9), (b"six", sender.getsockname()))
    same("of IPv4", receiver.recvfrom(9), (b"four", ("::ffff:127.0.0.1", four.getsockname()[1], 0, 0)))
    four.sendto(b"again", ("127.0.0.1", port))
    same("goes on", receiver.recv(9), b"again")
