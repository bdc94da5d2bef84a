"""Time stamps of the new kind, SO_INCOMING_CPU, SO_TXREHASH, SO_TXTIME, SO_LOCK_FILTER"""
import socket
import struct

from case import case, set_options, tcp_pair

SOL = socket.SOL_SOCKET


@case
def options_socket_rare():
    ends = [*tcp_pair(), socket.socket(), socket.socket(), socket.socket()]
    # TXREHASH, LOCK_FILTER
    checks = [set_options(end, [(SOL, 74, 0), (SOL, 44, 1)]) for end in ends]
    # INCOMING_CPU; TXTIME: CLOCK_MONOTONIC
    checks.append(set_options(ends[2], [(SOL, 49, 0), (SOL, 61, struct.pack("iI", 1, 2))]))
    # TIMESTAMP_NEW, TIMESTAMPNS_NEW, TIMESTAMPING_NEW
    checks += [set_options(end, [(SOL, name, value)]) for end, name, value in zip(ends[2:], (63, 64, 65), (1, 1, 16))]
    yield
    for check in checks:
        check()
