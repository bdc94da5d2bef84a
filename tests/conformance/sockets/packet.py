"""Packet sockets: bound by protocol and interface, with options, memberships, a fanout group and a filter"""
import ctypes
import select
import socket
import struct

from case import case, set_options, same, until

SOL_PACKET = 263
ADD_MEMBERSHIP, AUXDATA, ORIGDEV, FANOUT, IGNORE_OUTGOING = 1, 8, 9, 18, 23
MR_MULTICAST, MR_PROMISC = 0, 1
IP, ALL = 0x0800, 3


def memberships():
    """Addresses that the loopback listens to."""
    with open("/proc/self/net/dev_mcast") as file:
        return [line.split()[2:] for line in file if line.split()[1] == "lo"]


def hears(sock, data):
    """Whether a datagram to the loopback is heard."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(data, ("127.0.0.1", 9))
    return any(data in sock.recv(4096) for _ in iter(lambda: select.select([sock], [], [], 0.2)[0], []))


@case
def packet():
    bound = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(IP))
    bound.bind(("lo", IP))
    cooked = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    index = socket.if_nametoindex("lo")
    group = b"\x01\x00\x5e\x01\x02\x03"
    for _ in range(2):
        cooked.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, struct.pack("=iHH8s", index, MR_MULTICAST, 6, group))
    cooked.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, struct.pack("=iHH8s", index, MR_PROMISC, 0, b""))
    fan = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5)) for _ in range(2)]
    for sock in fan:
        # By turns, with packets put together again.
        sock.setsockopt(SOL_PACKET, FANOUT, 0x4711 | 1 << 16 | 0x8000 << 16 & 0x7fffffff)
    check = set_options(cooked, [(SOL_PACKET, AUXDATA, 1), (SOL_PACKET, ORIGDEV, 1), (SOL_PACKET, IGNORE_OUTGOING, 1)])
    quiet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    # Nothing is let through.
    nothing = struct.pack("=HBBI", 6, 0, 0, 0)
    buffer = ctypes.create_string_buffer(nothing)
    quiet.setsockopt(socket.SOL_SOCKET, 26, struct.pack("@HP", 1, ctypes.addressof(buffer)))
    quiet.bind(("lo", ALL))
    names = [sock.getsockname() for sock in (bound, cooked, quiet, *fan)]
    groups = [sock.getsockopt(SOL_PACKET, FANOUT) for sock in fan]
    heard = memberships()

    def drain():
        while select.select([bound], [], [], 0)[0]:
            bound.recv(4096)

    until("silence", lambda: not drain() and not select.select([bound], [], [], 0.01)[0])
    yield drain
    check()
    same("names", [sock.getsockname() for sock in (bound, cooked, quiet, *fan)], names)
    same("fanout", [sock.getsockopt(SOL_PACKET, FANOUT) for sock in fan], groups)
    same("memberships", memberships(), heard)
    same("hears", hears(bound, b"after the move"), True)
    same("is quiet", hears(quiet, b"nobody hears"), False)
    # Twice joined, twice left.
    leave = struct.pack("=iHH8s", index, MR_MULTICAST, 6, group)
    for left in (False, True):
        cooked.setsockopt(SOL_PACKET, 2, leave)
        same("left", not any("01005e010203" in words for words in memberships()), left)
