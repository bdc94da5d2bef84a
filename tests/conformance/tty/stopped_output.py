"""A terminal whose output is stopped"""
# refused: its output is stopped
import os
import termios

from case import case, same


@case
def stopped_output():
    master, slave = os.openpty()
    termios.tcflow(slave, termios.TCOOFF)
    yield
    termios.tcflow(slave, termios.TCOON)
    os.write(slave, b"x")
    same("output", os.read(master, 9), b"x")
