"""Output of a terminal that its master has not read"""
# refused: output waits
import os

from case import case, same


@case
def output_waits():
    master, slave = os.openpty()
    os.write(slave, b"waiting\n")
    yield
    same("output", os.read(master, 99), b"waiting\r\n")
