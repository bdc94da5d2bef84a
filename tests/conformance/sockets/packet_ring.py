"""A packet socket with a ring that is not mapped"""
# refused: ring
import socket
import struct

from case import case, same


@case
def packet_ring():
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(263, 5, struct.pack("=IIII", 4096, 2, 2048, 4))
    yield
    same("type", sock.type & 15, int(socket.SOCK_RAW))
