"""One packet in a pipe in packet mode: the next one does not join it, and what is not read of it is dropped"""
import os

from case import case, same


@case
def packet_one():
    reader, writer = os.pipe2(os.O_DIRECT)
    other, into = os.pipe2(os.O_DIRECT)
    os.write(writer, b"first")
    os.write(into, b"whole")
    yield
    os.write(writer, b"next")
    same("packets", [os.read(reader, 99), os.read(reader, 99)], [b"first", b"next"])
    os.write(into, b"z")
    same("a part", [os.read(other, 2), os.read(other, 9)], [b"wh", b"z"])
