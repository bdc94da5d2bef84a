"""The keys of a listener for TCP Fast Open"""
import socket

from case import case, same


@case
def fastopen_key():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 9)
    listener.setsockopt(socket.IPPROTO_TCP, 33, bytes(range(32)))
    yield
    same("keys", listener.getsockopt(socket.IPPROTO_TCP, 33, 64), bytes(range(32)))
