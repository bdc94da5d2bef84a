"""Packet filters on sockets of TCP, UDP and unix, one of them locked, with data that they have let through"""
import ctypes
import select
import socket
import struct

from case import case, same, tcp_pair, until

ATTACH, LOCK = 26, 44


def attach(sock, *instructions):
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in instructions))
    sock.setsockopt(socket.SOL_SOCKET, ATTACH, struct.pack("@HP", len(instructions), ctypes.addressof(code)))


def read(sock):
    code = ctypes.create_string_buffer(8 * 64)
    length = ctypes.c_uint32(64)
    found = ctypes.CDLL(None).getsockopt(sock.fileno(), socket.SOL_SOCKET, ATTACH, code, ctypes.byref(length))
    return found, length.value, code.raw[:8 * length.value]


def first_byte(offset, byte):
    """Only what begins with a byte is let through."""
    return (0x30, 0, 0, offset), (0x15, 0, 1, byte), (6, 0, 0, 65535), (6, 0, 0, 0)


@case
def filter():
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    attach(udp, *first_byte(8, ord("a")))
    udp.setsockopt(socket.SOL_SOCKET, LOCK, 1)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect(udp.getsockname())
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    attach(right, *first_byte(0, ord("a")))
    client, server = tcp_pair()
    client.send(b"data")
    until("data", lambda: server.recv(9, socket.MSG_PEEK) == b"data")
    listener = socket.create_server(("127.0.0.1", 0))
    count = 1
    try:
        # It has let through what is there, and then nothing.
        attach(server, (6, 0, 0, 0))
        attach(listener, (6, 0, 0, 65535))
    except PermissionError:
        # Newer kernels want CAP_NET_ADMIN for it.
        count = 0
    for sock in (sender, left):
        sock.send(b"a first")
        sock.send(b"b second")
    sockets = (udp, right, server, listener)
    before = [read(sock) for sock in sockets]
    same("filters", [found[:2] for found in before], [(0, 4), (0, 4), (0, count), (0, count)])
    yield
    same("filters", [read(sock) for sock in sockets], before)
    try:
        udp.setsockopt(socket.SOL_SOCKET, 27, 0)
        assert False, "the filter is not locked"
    except PermissionError:
        pass
    for sock, other in ((udp, sender), (right, left)):
        other.send(b"b third")
        other.send(b"a fourth")
        until("data", lambda: select.select([sock], [], [], 0)[0])
        same("heard", [sock.recv(99), sock.recv(99)], [b"a first", b"a fourth"])
        same("more", select.select([sock], [], [], 0)[0], [])
    same("data", server.recv(9), b"data")
