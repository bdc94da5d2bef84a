"""Options of IPPROTO_IPV6 of a connection and a fresh socket"""
import socket

from case import case, set_options, tcp_pair

IP6 = socket.IPPROTO_IPV6
# UNICAST_HOPS, MTU_DISCOVER, RECVERR, RECVERR_RFC4884, FLOWINFO_SEND, RECVPKTINFO, RECVHOPLIMIT, RECVHOPOPTS, RECVRTHDR,
# RECVDSTOPTS, RECVPATHMTU, DONTFRAG, RECVTCLASS, TCLASS, AUTOFLOWLABEL, MINHOPCOUNT, ORIGDSTADDR, TRANSPARENT, RECVFRAGSIZE,
# FREEBIND, ADDR_PREFERENCES
OPTIONS = [
    (16, 44), (23, 0), (25, 1), (31, 1), (33, 1), (49, 1), (51, 1), (53, 1), (56, 1), (58, 1), (60, 1), (62, 1), (66, 1),
    (67, 0x20), (70, 0), (73, 3), (74, 1), (75, 1), (77, 1), (78, 1), (72, 4),
]


@case
def options_ip6():
    ends = (*tcp_pair("::1"), socket.socket(socket.AF_INET6))
    checks = [set_options(end, [(IP6, name, value) for name, value in OPTIONS]) for end in ends]
    # V6ONLY
    checks.append(set_options(ends[2], [(IP6, 26, 1)]))
    yield
    for check in checks:
        check()
