"""Packets in a pipe whose writer left packet mode and closed"""
import fcntl
import os

from case import case, same


@case
def packets_closed():
    reader, writer = os.pipe2(os.O_DIRECT)
    for packet in (b"one", b"two"):
        os.write(writer, packet)
    for fd in (reader, writer):
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.close(writer)
    yield
    same("packets", [os.read(reader, 9) for _ in range(3)], [b"one", b"two", b""])
