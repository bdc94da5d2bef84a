"""A terminal with locked modes (TIOCSLCKTRMIOS)"""
# refused: locked modes
# not: move: a container lacks CAP_SYS_ADMIN
import fcntl
import os
import struct

from case import case, same


@case
def locked_modes():
    master, slave = os.openpty()
    fcntl.ioctl(slave, 0x5457, struct.pack("=4I", 0, 0, 0, 8) + bytes(20))
    yield
    same("locked", fcntl.ioctl(slave, 0x5456, bytes(36))[12], 8)
