"""A packet filter on a connection (SO_ATTACH_FILTER)"""
# not: move: newer kernels want CAP_NET_ADMIN for one on TCP
import ctypes
import socket
import struct

from case import case, same, tcp_pair


@case
def filter():
    left, right = tcp_pair()
    left.send(b"before")
    # BPF_RET | BPF_K: all of it.
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF))
    right.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 1, ctypes.addressof(program)))
    right.setsockopt(socket.SOL_SOCKET, 44, 1)
    yield
    found, length = ctypes.create_string_buffer(64), ctypes.c_uint32(8)
    ctypes.CDLL(None).getsockopt(right.fileno(), socket.SOL_SOCKET, 26, found, ctypes.byref(length))
    same("filter", found.raw[:8 * length.value], program.raw[:8])
    same("lock", right.getsockopt(socket.SOL_SOCKET, 44), 1)
    left.send(b"after")
    same("data", right.recv(11, socket.MSG_WAITALL), b"beforeafter")
