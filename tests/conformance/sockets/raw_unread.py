"""A raw socket with a packet that was not read"""
# refused: packets that wait
import select
import socket

from case import case, same, until


@case
def raw_unread():
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, 251)
    sock.sendto(b"packet", ("127.0.0.1", 0))
    until("the packet", lambda: select.select([sock], [], [], 0)[0])
    yield
    same("packet", sock.recv(99)[20:], b"packet")
