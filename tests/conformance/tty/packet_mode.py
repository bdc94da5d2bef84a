"""Packet mode: data and events later"""
import fcntl
import os
import struct
import termios

from case import case, same


@case
def packet_mode():
    master, slave = os.openpty()
    fcntl.ioctl(master, 0x5420, struct.pack("=i", 1))
    yield
    os.write(slave, b"x")
    same("data", os.read(master, 9), b"\0x")
    termios.tcflush(slave, termios.TCOFLUSH)
    same("event", os.read(master, 9), b"\x02")
