"""A packet filter on a socket (SO_ATTACH_FILTER)"""
# refused: filter
# not: move: a container without capabilities is not let attach one
import ctypes
import socket
import struct

from case import case, tcp_pair


@case
def filter():
    _left, right = tcp_pair()
    # BPF_RET | BPF_K: all of it.
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF))
    right.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 1, ctypes.addressof(program)))
    yield
