"""Half a line that was typed without echo, as a password is"""
# refused: without echo
import os
import termios

from case import case, same


@case
def typed_silent():
    master, slave = os.openpty()
    modes = termios.tcgetattr(slave)
    modes[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    os.write(master, b"secre")
    yield
    os.write(master, b"t\n")
    same("line", os.read(slave, 99), b"secret\n")
