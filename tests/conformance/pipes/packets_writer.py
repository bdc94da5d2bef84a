"""A pipe with several packets of which only the writer is in packet mode"""
import fcntl
import os

from case import case, same


@case
def packets_writer():
    reader, writer = os.pipe2(os.O_DIRECT)
    fcntl.fcntl(reader, fcntl.F_SETFL, 0)
    for packet in (b"one", b"second", b"third"):
        os.write(writer, packet)
    yield
    same("modes", [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT for fd in (reader, writer)], [0, os.O_DIRECT])
    # What does not fit is lost, as ever.
    same("packets", [os.read(reader, 9), os.read(reader, 2), os.read(reader, 9)], [b"one", b"se", b"third"])
