"""An offset beyond the end of a file, and one above 4 GiB"""
import os

from case import case, same, scratch


@case
def offset_beyond():
    fd = os.open(scratch("far"), os.O_CREAT | os.O_RDWR)
    at = (5 << 30) + 3
    os.lseek(fd, at, os.SEEK_SET)
    yield
    same("offset", os.lseek(fd, 0, os.SEEK_CUR), at)
    same("size", os.fstat(fd).st_size, 0)
    os.write(fd, b"x")
    same("size after", os.fstat(fd).st_size, at + 1)
