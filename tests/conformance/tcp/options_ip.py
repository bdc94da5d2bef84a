"""Options of IPPROTO_IP of a connection and a fresh socket"""
import socket
import struct

from case import case, set_options, tcp_pair

IP = socket.IPPROTO_IP
# TOS, TTL, RECVOPTS, RETOPTS, PKTINFO, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS, FREEBIND, TRANSPARENT, RECVORIGDSTADDR, MINTTL
OPTIONS = [(1, 0x48), (2, 33), (6, 1), (7, 1), (8, 1), (10, 0), (11, 1), (12, 1), (13, 1), (15, 1), (19, 1), (20, 1), (21, 5)]
# PASSSEC, CHECKSUM, BIND_ADDRESS_NO_PORT, RECVFRAGSIZE, RECVERR_RFC4884, LOCAL_PORT_RANGE
MORE = [(18, 1), (24, 1), (25, 1), (26, 1), (51, struct.pack("HH", 40000, 50000))]


@case
def options_ip():
    checks = []
    for end in (*tcp_pair(), socket.socket()):
        for name, value in OPTIONS + MORE:
            try:
                checks.append(set_options(end, [(IP, name, value)]))
            except OSError:
                # Not for streams.
                pass
    assert len(checks) >= 3 * len(OPTIONS), len(checks)
    yield
    for check in checks:
        check()
