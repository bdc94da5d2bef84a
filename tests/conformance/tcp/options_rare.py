"""The largest segment of a socket, its window clamp, its limits of retransmission timers"""
import socket

from case import case, set_options, tcp_pair

TCP = socket.IPPROTO_TCP


@case
def options_rare():
    left, _right = tcp_pair()
    fresh = socket.socket()
    listener = socket.create_server(("127.0.0.1", 0))
    # WINDOW_CLAMP; RTO_MAX_MS, RTO_MIN_US, DELACK_MAX_US
    timers = [(TCP, 44, 5000), (TCP, 45, 50000), (TCP, 46, 20000)]
    checks = [set_options(fresh, [(TCP, 10, 9000), *timers]), set_options(left, timers)]
    # MAXSEG
    checks.append(set_options(listener, [(TCP, 10, 9000), *timers]))
    for end in (fresh, listener):
        end.setsockopt(TCP, 2, 700)
    yield
    for check in checks:
        check()
    client = socket.create_connection(listener.getsockname())
    mss = client.getsockopt(TCP, 2)
    assert mss <= 700, f"the listener offers segments of {mss} bytes"
