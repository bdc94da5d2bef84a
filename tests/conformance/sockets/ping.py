"""Ping sockets: ICMP without being root, by the identifier that they have"""
# not: boxed move: nobody may have them in its new network namespace
import socket
import struct

from case import case, read, same

LIMITS = "/proc/sys/net/ipv4/ping_group_range"


@case
def ping():
    before = read(LIMITS)
    # In a network namespace of its own nobody may have them.
    if before.split() == ["1", "0"]:
        with open(LIMITS, "w") as file:
            file.write("0 0")
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    sock.bind(("127.0.0.1", 4711))
    sock.settimeout(10)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 9)
    six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6)
    six.connect(("::1", 0))
    try:
        yield
        same("name", sock.getsockname(), ("127.0.0.1", 4711))
        same("time to live", sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL), 9)
        sock.sendto(struct.pack(">BBHHH", 8, 0, 0, 0, 3) + b"hello", ("127.0.0.1", 0))
        answer = sock.recv(99)
        same("answer", (answer[0], answer[4:]), (0, struct.pack(">HH", 4711, 3) + b"hello"))
        six.settimeout(10)
        six.send(struct.pack(">BBHHH", 128, 0, 0, 0, 4) + b"six")
        same("answer over IPv6", six.recv(99)[6:], struct.pack(">H", 4) + b"six")
    finally:
        if before.split() == ["1", "0"]:
            with open(LIMITS, "w") as file:
                file.write(before)
