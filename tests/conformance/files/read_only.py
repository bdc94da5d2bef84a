"""A file open for reading whose mode forbids it by now, and one open for writing that is read-only"""
import os

from case import case, same, scratch


@case
def read_only():
    with open(scratch("one"), "wb") as file:
        file.write(b"secret")
    one = os.open(scratch("one"), os.O_RDONLY)
    os.chmod(scratch("one"), 0)
    two = os.open(scratch("two"), os.O_CREAT | os.O_WRONLY, 0o400)
    yield
    same("read", os.read(one, 9), b"secret")
    os.write(two, b"written")
    same("mode", (os.fstat(one).st_mode & 0o777, os.fstat(two).st_mode & 0o777), (0, 0o400))
    same("content", open(scratch("two"), "rb").read(), b"written")
