"""A device that belongs to the host"""
# refused: device
# not: move: it is not in the container
import os

from case import case


@case
def kmsg():
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    yield
    try:
        assert os.read(fd, 8192)
    except BrokenPipeError:
        # What was next has been overwritten meanwhile.
        assert os.read(fd, 8192)
