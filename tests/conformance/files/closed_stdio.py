"""Standard input and standard error closed, and a file under their numbers"""
import os

from case import case, same, scratch


@case
def closed_stdio():
    os.close(0)
    os.close(2)
    fd = os.open(scratch("data"), os.O_CREAT | os.O_RDWR)
    same("number", fd, 0)
    os.write(fd, b"as input")
    yield
    same("content", os.pread(0, 20, 0), b"as input")
    same("open", sorted(int(name) for name in os.listdir("/proc/self/fd"))[:2], [0, 1])
    try:
        os.fstat(2)
        raise AssertionError("2 is open")
    except OSError:
        pass
