"""A pipe of which only a descriptor for reading and writing is left"""
import os

from case import case, same


@case
def only_both():
    reader, writer = os.pipe()
    both = os.open(f"/proc/self/fd/{reader}", os.O_RDWR)
    os.close(reader)
    os.close(writer)
    os.write(both, b"self")
    yield
    same("data", os.read(both, 9), b"self")
    os.write(both, b"more")
    same("more", os.read(both, 9), b"more")
