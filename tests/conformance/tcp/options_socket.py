"""Options of SOL_SOCKET of a connection, a listener and a fresh socket"""
import socket
import struct

from case import case, set_options, tcp_pair

SOL = socket.SOL_SOCKET
# SO_DONTROUTE, SNDBUF, RCVBUF, KEEPALIVE, OOBINLINE, PRIORITY, LINGER, RCVLOWAT, RCVTIMEO, SNDTIMEO, BINDTODEVICE
OPTIONS = [
    (5, 1), (7, 30000), (8, 40000), (9, 1), (10, 1), (12, 5), (13, struct.pack("ii", 1, 7)), (18, 3),
    (20, struct.pack("ll", 5, 250000)), (21, struct.pack("ll", 6, 0)), (25, b"lo"),
    # TIMESTAMP, MARK, TIMESTAMPING, BUSY_POLL, MAX_PACING_RATE, ZEROCOPY, RCVPRIORITY
    (29, 1), (36, 99), (37, 1 << 4), (46, 30), (47, 1 << 30), (60, 1), (82, 1),
]


@case
def options_socket():
    sockets = [*tcp_pair(), socket.create_server(("127.0.0.1", 0)), socket.socket()]
    checks = [set_options(end, [(SOL, name, value) for name, value in OPTIONS]) for end in sockets]
    yield
    for check in checks:
        check()
