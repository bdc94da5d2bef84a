"""Newer options of TCP: least and longest time to send again, longest delay of an answer (TCP_RTO_MIN_US and its like), SO_RCVPRIORITY"""
import errno
import socket

from case import case, same, tcp_pair

# TCP_RTO_MAX_MS, TCP_RTO_MIN_US, TCP_DELACK_MAX_US; SO_RCVPRIORITY
OPTIONS = [(6, 44, 20000), (6, 45, 50000), (6, 46, 30000), (1, 82, 1)]


@case
def options_new():
    client, server = tcp_pair()
    listener = socket.create_server(("127.0.0.1", 0))
    done = []
    for sock in (client, server, listener):
        for level, option, value in OPTIONS:
            try:
                sock.setsockopt(level, option, value)
                done.append((sock, level, option, sock.getsockopt(level, option)))
            except OSError as error:
                same("error", error.errno, errno.ENOPROTOOPT)
    yield
    for sock, level, option, value in done:
        same(f"option {level}/{option}", sock.getsockopt(level, option), value)
    client.sendall(b"x")
    same("data", server.recv(5), b"x")
