"""A master whose terminal nobody has opened yet, and that is locked"""
# refused: slave was not opened yet
import fcntl
import os

from case import case, same


@case
def slave_never_opened():
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    yield
    fcntl.ioctl(master, 0x40045431, bytes(4))
    number = int.from_bytes(fcntl.ioctl(master, 0x80045430, bytes(4)), "little")
    slave = os.open(f"/dev/pts/{number}", os.O_RDWR | os.O_NOCTTY)
    os.write(slave, b"x")
    same("data", os.read(master, 9), b"x")
