"""A route socket that listens to groups, with options"""
import socket

from case import case, same


@case
def netlink_groups():
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    # RTMGRP_LINK, RTMGRP_IPV4_IFADDR
    sock.bind((0, 1 | 0x10))
    # NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK, NETLINK_NO_ENOBUFS; a group beyond the first 32: NEXTHOP
    for name in (11, 12, 5):
        sock.setsockopt(270, name, 1)
    sock.setsockopt(270, 1, 32)
    name, groups = sock.getsockname(), sock.getsockopt(270, 9, 16)
    yield
    same("name", sock.getsockname(), name)
    same("groups", sock.getsockopt(270, 9, 16), groups)
    same("options", [sock.getsockopt(270, option) for option in (11, 12, 5)], [1, 1, 1])
