"""A line that was typed on a terminal and not read"""
# refused: input waits
import os

from case import case, same


@case
def input_waits():
    master, slave = os.openpty()
    os.write(master, b"typed\n")
    os.read(master, 99)
    yield
    same("input", os.read(slave, 99), b"typed\n")
