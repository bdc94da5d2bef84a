"""A fifo with packets: a name, and O_DIRECT of its writer"""
import fcntl
import os

from case import case, same, scratch


@case
def fifo_packets():
    os.mkfifo(scratch("fifo"))
    reader = os.open(scratch("fifo"), os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(scratch("fifo"), os.O_WRONLY)
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_DIRECT)
    for packet in (b"one", b"two"):
        os.write(writer, packet)
    yield
    same("packets", [os.read(reader, 9) for _ in range(2)], [b"one", b"two"])
