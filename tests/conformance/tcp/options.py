"""Options of TCP of both ends of a connection and of a listener"""
import socket

from case import case, set_options, tcp_pair

TCP = socket.IPPROTO_TCP
# NODELAY, KEEPIDLE, KEEPINTVL, KEEPCNT, SYNCNT, LINGER2, CONGESTION, THIN_LINEAR_TIMEOUTS, USER_TIMEOUT, NOTSENT_LOWAT, INQ
ANY = [(1, 1), (4, 77), (5, 11), (6, 3), (7, 4), (8, 9), (13, b"reno"), (16, 1), (18, 12345), (25, 4096), (36, 1)]


@case
def options():
    checks = []
    for end in tcp_pair():
        checks.append(set_options(end, [(TCP, name, value) for name, value in ANY]))
    listener = socket.create_server(("127.0.0.1", 0))
    # DEFER_ACCEPT, FASTOPEN, SAVE_SYN
    checks.append(set_options(listener, [(TCP, 9, 5), (TCP, 23, 17), (TCP, 27, 1)] + [(TCP, 4, 99), (TCP, 1, 1)]))
    fresh = socket.socket()
    # FASTOPEN_CONNECT, FASTOPEN_NO_COOKIE
    checks.append(set_options(fresh, [(TCP, 30, 1), (TCP, 34, 1), (TCP, 18, 5)]))
    yield
    for check in checks:
        check()
