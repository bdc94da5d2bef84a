"""Two open files that are one by hard links"""
import os

from case import case, same, scratch


@case
def hard_links():
    one = os.open(scratch("one"), os.O_CREAT | os.O_RDWR)
    os.link(scratch("one"), scratch("two"))
    two = os.open(scratch("two"), os.O_RDWR)
    yield
    os.pwrite(one, b"seen", 0)
    same("through the other", os.pread(two, 9, 0), b"seen")
    same("links", (os.fstat(one).st_nlink, os.fstat(one).st_ino), (2, os.stat(scratch("two")).st_ino))
