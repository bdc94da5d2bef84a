"""Bytes that were typed on a raw terminal and not read"""
# refused: input waits
import os
import tty

from case import case, same


@case
def raw_input_waits():
    master, slave = os.openpty()
    tty.setraw(slave)
    os.write(master, b"typed")
    yield
    same("input", os.read(slave, 99), b"typed")
