"""A file deleted under the name it was opened by, with another name left in another directory"""
# refused: name
import os

from case import case, same, scratch


@case
def deleted_linked_elsewhere():
    os.mkdir(scratch("there"))
    fd = os.open(scratch("first"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x")
    os.link(scratch("first"), scratch("there/second"))
    os.unlink(scratch("first"))
    yield
    same("the same file", os.stat(scratch("there/second")).st_ino, os.fstat(fd).st_ino)
