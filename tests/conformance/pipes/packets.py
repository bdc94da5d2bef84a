"""A pipe in packet mode (O_DIRECT on both ends) with several packets"""
import fcntl
import os

from case import case, same


@case
def packets():
    reader, writer = os.pipe2(os.O_DIRECT)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_DIRECT)
    again = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY)
    fcntl.fcntl(again, fcntl.F_SETFL, os.O_DIRECT)
    sent = [b"one", b"second", b"x" * 4096, b"last"]
    for packet in sent:
        os.write(writer, packet)
    yield
    os.write(again, b"later")
    same("packets", [os.read(reader, 9999) for _ in range(5)], sent + [b"later"])
