"""Numbers of terminals with gaps: each keeps its own, the next one gets the lowest free"""
import os

from case import case, same


@case
def gaps():
    pairs = [os.openpty() for _ in range(6)]
    for at in (1, 4):
        for fd in pairs[at]:
            os.close(fd)
    kept = [pair for at, pair in enumerate(pairs) if at not in (1, 4)]
    before = [os.ttyname(slave) for _, slave in kept]
    yield
    same("names", [os.ttyname(slave) for _, slave in kept], before)
    for master, slave in kept:
        os.write(slave, b"x")
        same("leads to its master", os.read(master, 9), b"x")
