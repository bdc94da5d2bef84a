"""Ends of a pipe opened again by /proc: two readers, one for both, a writer of its own flags"""
import fcntl
import os

from case import case, same


@case
def reopened():
    reader, writer = os.pipe()
    again = os.open(f"/proc/self/fd/{reader}", os.O_RDONLY | os.O_NONBLOCK)
    both = os.open(f"/proc/self/fd/{reader}", os.O_RDWR)
    into = os.open(f"/proc/self/fd/{reader}", os.O_WRONLY | os.O_NONBLOCK)
    os.write(into, b"abcdef")
    modes = lambda: [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (reader, writer, again, both, into)]
    before = modes()
    yield
    same("modes", modes(), before)
    same("data", [os.read(fd, 2) for fd in (reader, again, both)], [b"ab", b"cd", b"ef"])
    os.close(reader)
    os.close(again)
    os.write(both, b"self")
    os.close(writer)
    os.close(into)
    same("itself", os.read(both, 9), b"self")
