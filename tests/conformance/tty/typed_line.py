"""Half a line that was typed, with echo: it can still be rubbed out and ended"""
import os

from case import case, same, until


@case
def typed_line():
    master, slave = os.openpty()
    os.write(master, b"hello worlf")
    until("the echo", lambda: os.read(master, 99) == b"hello worlf")
    yield
    os.write(master, b"\x7fd\n")
    same("line", os.read(slave, 99), b"hello world\n")
