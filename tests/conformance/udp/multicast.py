"""Memberships of multicast groups, with and without a choice of whom to hear"""
import socket
import struct

from case import case, same

LOOPBACK = 1
LOCALHOST = socket.inet_aton("127.0.0.1")
IP, IPV6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6


def sockaddr(ip):
    if ":" in ip:
        return struct.pack("=HHI16sI100x", socket.AF_INET6, 0, 0, socket.inet_pton(socket.AF_INET6, ip), 0)
    return struct.pack("=H2x4s120x", socket.AF_INET, socket.inet_aton(ip))


def fresh(family):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind(("", 0))
    return sock


def heard(sock, group):
    """Whether a datagram to the group arrives that comes from 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(IP, socket.IP_MULTICAST_IF, LOCALHOST)
        sender.bind(("127.0.0.1", 0))
        sender.sendto(b"hello", (group, sock.getsockname()[1]))
        # After it, one that arrives.
        sender.sendto(b"end", ("127.0.0.1", sock.getsockname()[1]))
    sock.settimeout(10)
    found = sock.recv(9)
    if found == b"hello":
        same("behind it", sock.recv(9), b"end")
    return found == b"hello"


@case
def multicast():
    everybody, other, some, none, six = (fresh(family) for family in [socket.AF_INET] * 4 + [socket.AF_INET6])
    everybody.setsockopt(IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.7.7.7") + LOCALHOST)
    # By number; and what others have joined is not heard (IP_MULTICAST_ALL).
    other.setsockopt(IP, socket.IP_ADD_MEMBERSHIP, struct.pack("=4s4si", socket.inet_aton("239.7.7.8"), bytes(4), LOOPBACK))
    for sock in everybody, other, some, none:
        sock.setsockopt(IP, 49, 0)
    # MCAST_JOIN_SOURCE_GROUP, MCAST_BLOCK_SOURCE
    some.setsockopt(IP, 46, struct.pack("=I4x", LOOPBACK) + sockaddr("232.7.7.7") + sockaddr("127.0.0.1"))
    none.setsockopt(IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.7.7.7") + LOCALHOST)
    none.setsockopt(IP, 43, struct.pack("=I4x", LOOPBACK) + sockaddr("239.7.7.7") + sockaddr("127.0.0.1"))
    group = socket.inet_pton(socket.AF_INET6, "ff15::7:7") + struct.pack("=I", LOOPBACK)
    six.setsockopt(IPV6, socket.IPV6_JOIN_GROUP, group)
    yield
    same("the first group", [heard(sock, "239.7.7.7") for sock in (everybody, other, some, none)], [True, False, False, False])
    same("the second", [heard(sock, "239.7.7.8") for sock in (everybody, other)], [False, True])
    same("the third", [heard(sock, "232.7.7.7") for sock in (some, none)], [True, False])
    # MCAST_LEAVE_SOURCE_GROUP, MCAST_UNBLOCK_SOURCE
    some.setsockopt(IP, 47, struct.pack("=I4x", LOOPBACK) + sockaddr("232.7.7.7") + sockaddr("127.0.0.1"))
    none.setsockopt(IP, 44, struct.pack("=I4x", LOOPBACK) + sockaddr("239.7.7.7") + sockaddr("127.0.0.1"))
    same("unblocked", heard(none, "239.7.7.7"), True)
    everybody.setsockopt(IP, socket.IP_DROP_MEMBERSHIP, socket.inet_aton("239.7.7.7") + LOCALHOST)
    same("left", heard(everybody, "239.7.7.7"), False)
    six.setsockopt(IPV6, socket.IPV6_LEAVE_GROUP, group)
