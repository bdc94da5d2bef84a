"""Raw sockets: ICMP with a filter, one with headers of its own, one that is bound and connected, one of IPv6"""
import select
import socket
import struct

from case import case, same, set_options, until

ICMP_FILTER, IPV6_CHECKSUM, ICMP6_FILTER = 1, 7, 1
# All but echo replies are filtered out.
REPLIES = struct.pack("=I", ~1 & 0xffffffff)


def echo(sock, number):
    head = struct.pack(">BBHHH", 8, 0, 0, 0x4711, number)
    total = sum(struct.unpack(">4H", head))
    head = head[:2] + struct.pack(">H", ~(total + (total >> 16)) & 0xffff) + head[4:]
    sock.sendto(head, ("127.0.0.1", 0))
    while True:
        until("the answer", lambda: select.select([sock], [], [], 0)[0])
        packet = sock.recv(4096)[20:]
        same("type", packet[0], 0)
        if packet[4:8] == head[4:8]:
            return


@case
def raw():
    plain = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    plain.setsockopt(255, ICMP_FILTER, REPLIES)
    plain.bind(("127.0.0.1", 0))
    headers = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)
    connected = socket.socket(socket.AF_INET, socket.SOCK_RAW, 254)
    connected.bind(("127.0.0.1", 0))
    connected.connect(("127.0.0.2", 0))
    six = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 252)
    six.bind(("::1", 0))
    six.connect(("::1", 0))
    of_icmp6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    of_icmp6.setsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, b"\xff" * 32)
    checks = [
        set_options(plain, [(socket.IPPROTO_IP, socket.IP_TTL, 7), (socket.SOL_SOCKET, socket.SO_RCVBUF, 99999)]),
        set_options(headers, [(socket.IPPROTO_IP, socket.IP_HDRINCL, 1), (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")]),
        set_options(connected, [(socket.IPPROTO_IP, socket.IP_TOS, 16)]),
        set_options(six, [(socket.IPPROTO_IPV6, IPV6_CHECKSUM, 4)]),
    ]
    echo(plain, 1)
    yield
    for check in checks:
        check()
    same("filter", plain.getsockopt(255, ICMP_FILTER, 4), REPLIES)
    same("filter of ICMPv6", of_icmp6.getsockopt(socket.IPPROTO_ICMPV6, ICMP6_FILTER, 32), b"\xff" * 32)
    same("address", plain.getsockname()[0], "127.0.0.1")
    echo(plain, 2)
    # Of a connected one only the peer is heard.
    for source in ("127.0.0.3", "127.0.0.2"):
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, 254) as sender:
            sender.bind((source, 0))
            sender.sendto(source.encode(), ("127.0.0.1", 0))
    same("heard", connected.recv(99)[20:], b"127.0.0.2")
    same("more", select.select([connected], [], [], 0)[0], [])
    connected.send(b"to the peer")
    six.send(b"12345678")
    same("of IPv6", len(six.recv(99)), 8)
    packet = bytearray(struct.pack(">BBHHHBBH4s4s", 0x45, 0, 24, 7, 0, 9, 253, 0, socket.inet_aton("127.0.0.9"), socket.inet_aton("127.0.0.1")) + b"head")
    headers.sendto(packet, ("127.0.0.1", 0))
    got = headers.recv(99)
    same("its own header", (got[8], got[12:16], got[20:]), (9, b"\x7f\0\0\x09", b"head"))
