"""Options of datagram sockets: broadcast, sizes of buffers, time stamps, packet information, segments"""
import socket
import struct

from case import case, set_options

SOL, IP, IP6, UDP = socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_IPV6, socket.IPPROTO_UDP
# SO_BROADCAST, SNDBUF, RCVBUF, PRIORITY, RCVTIMEO, BINDTODEVICE, TIMESTAMPNS, MARK, TIMESTAMPING, RXQ_OVFL, SELECT_ERR_QUEUE
SOCKET = [(6, 1), (7, 30000), (8, 40000), (12, 4), (20, struct.pack("ll", 3, 0)), (25, b"lo"), (35, 1), (36, 5), (37, 16), (40, 1), (45, 1)]


@case
def options():
    checks = []
    for family in (socket.AF_INET, socket.AF_INET6):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        # SEGMENT, GRO, NO_CHECK6_TX, NO_CHECK6_RX; SO_NO_CHECK
        checks.append(set_options(sock, [(UDP, 103, 900), (UDP, 104, 1), (UDP, 101, 1), (UDP, 102, 1), (SOL, 11, 1)]))
        # TOS, TTL, PKTINFO, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS, PASSSEC, FREEBIND, ORIGDSTADDR, CHECKSUM, RECVFRAGSIZE
        names = {1: 8, 2: 9, 8: 1, 10: 0, 11: 1, 12: 1, 13: 1, 18: 1, 15: 1, 20: 1, 23: 1, 25: 1, 26: 1}
        checks.append(set_options(sock, [(IP, name, value) for name, value in names.items()]))
        # After IP_TOS, which sets the priority.
        checks.append(set_options(sock, [(SOL, name, value) for name, value in SOCKET]))
    # RECVPKTINFO, RECVHOPLIMIT, HOPOPTS, RTHDR, DSTOPTS, PATHMTU, DONTFRAG, TCLASS, RECVTCLASS, V6ONLY, RECVERR_RFC4884
    names = {49: 1, 51: 1, 53: 1, 56: 1, 58: 1, 60: 1, 62: 1, 66: 1, 67: 32, 26: 1, 31: 1, 11: 1}
    checks.append(set_options(sock, [(IP6, name, value) for name, value in names.items()]))
    yield
    for check in checks:
        check()
