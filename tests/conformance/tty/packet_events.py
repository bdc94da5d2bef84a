"""Packet mode with an event that the master has not read: a flush"""
# refused: output waits
import fcntl
import os
import struct
import termios

from case import case, same


@case
def packet_events():
    master, slave = os.openpty()
    fcntl.ioctl(master, 0x5420, struct.pack("=i", 1))
    termios.tcflush(slave, termios.TCIFLUSH)
    yield
    same("event", os.read(master, 9), b"\x01")
