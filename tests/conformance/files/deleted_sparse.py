"""A deleted file with a hole of more than its own limit in memory"""
# refused: deleted file
import os

from case import case, same, scratch


@case
def deleted_sparse():
    fd = os.open(scratch("ghost"), os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"end", 200 << 20)
    os.unlink(scratch("ghost"))
    yield
    same("content", os.pread(fd, 3, 200 << 20), b"end")
