"""A file deleted under the name it was opened by, with another name left"""
# refused: name
import os

from case import case, same, scratch


@case
def deleted_linked():
    fd = os.open(scratch("first"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x")
    os.link(scratch("first"), scratch("second"))
    os.unlink(scratch("first"))
    yield
    same("links", os.fstat(fd).st_nlink, 1)
    same("the same file", os.stat(scratch("second")).st_ino, os.fstat(fd).st_ino)
