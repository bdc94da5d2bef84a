"""An open namespace"""
# refused: cannot move
import os

from case import case


@case
def namespace():
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    yield
    os.fstat(fd)
