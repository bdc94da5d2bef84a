"""Modes of terminals: termios with all its fields, window size, packet mode, exclusive, O_NONBLOCK"""
import fcntl
import os
import struct
import termios

from case import case, same

TIOCPKT, TIOCGPKT, TIOCEXCL, TIOCGEXCL = 0x5420, 0x80045438, 0x540C, 0x80045440
TCGETS2 = 0x802C542A


def number(fd, request):
    return struct.unpack("=i", fcntl.ioctl(fd, request, bytes(4)))[0]


def state(master, slave):
    return (
        fcntl.ioctl(slave, TCGETS2, bytes(44)),
        fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)),
        fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(8)),
        number(master, TIOCGPKT),
        number(slave, TIOCGEXCL),
        (os.get_blocking(master), os.get_blocking(slave)),
        os.ttyname(slave),
        (os.fstat(slave).st_mode, os.fstat(slave).st_uid, os.fstat(slave).st_gid),
    )


@case
def settings():
    wanted = []
    for at in range(4):
        master, slave = os.openpty()
        modes = termios.tcgetattr(slave)
        if at & 1:
            modes[0] = termios.IGNBRK | termios.ISTRIP | termios.INLCR | termios.IXANY
            modes[1] = 0
            modes[2] = termios.CS7 | termios.PARENB | termios.CREAD | termios.HUPCL
            modes[3] = termios.ISIG | termios.NOFLSH
            modes[4] = modes[5] = termios.B19200
            modes[6] = [bytes([number + 1]) for number in range(32)]
            modes[6][termios.VMIN], modes[6][termios.VTIME] = 3, 4
            termios.tcsetattr(slave, termios.TCSANOW, modes)
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("=4H", 33 + at, 101, 640, 480 + at))
        fcntl.ioctl(master, TIOCPKT, struct.pack("=i", at == 2))
        if at == 3:
            os.set_blocking(master, False)
            fcntl.ioctl(slave, TIOCEXCL)
        os.fchmod(slave, 0o600 + at)
        wanted.append((master, slave, state(master, slave)))
    yield
    for at, (master, slave, before) in enumerate(wanted):
        for what, found, expected in zip(("termios", "window", "window", "packet", "exclusive", "flags", "name", "node"), state(master, slave), before):
            same(f"{what} of {at}", found, expected)
    master, slave, _ = wanted[0]
    os.write(master, b"typed\n")
    same("input", os.read(slave, 99), b"typed\n")
    same("echo", os.read(master, 99), b"typed\r\n")
