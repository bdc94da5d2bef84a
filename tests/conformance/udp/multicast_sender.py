"""How multicast is sent: interface, time to live, loop, and whose groups are heard"""
import socket

from case import case, set_options


@case
def multicast_sender():
    four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    # IP_MULTICAST_IF, TTL, LOOP, ALL
    checks = [set_options(four, [(socket.IPPROTO_IP, 32, socket.inet_aton("127.0.0.1"))])]
    checks.append(set_options(four, [(socket.IPPROTO_IP, 33, 9), (socket.IPPROTO_IP, 34, 0), (socket.IPPROTO_IP, 49, 0)]))
    # IPV6_MULTICAST_IF (the loopback), HOPS, LOOP, ALL
    checks.append(set_options(six, [(socket.IPPROTO_IPV6, name, value) for name, value in ((17, 1), (18, 7), (19, 0), (29, 0))]))
    # IP_UNICAST_IF, IPV6_UNICAST_IF, in network order.
    checks.append(set_options(four, [(socket.IPPROTO_IP, 50, 1 << 24)]))
    checks.append(set_options(six, [(socket.IPPROTO_IPV6, 76, 1 << 24)]))
    yield
    for check in checks:
        check()
