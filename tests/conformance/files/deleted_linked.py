"""A file deleted under the name it was opened by, with another name left in the same directory"""
import mmap
import os

from case import case, same, scratch


@case
def deleted_linked():
    fd = os.open(scratch("first"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * 4096)
    memory = mmap.mmap(fd, 4096)
    os.link(scratch("first"), scratch("second"))
    os.unlink(scratch("first"))
    yield
    same("links", os.fstat(fd).st_nlink, 1)
    same("the same file", os.stat(scratch("second")).st_ino, os.fstat(fd).st_ino)
    memory[7:8] = b"y"
    same("content", os.pread(os.open(scratch("second"), os.O_RDONLY), 9, 0), b"xxxxxxxyx")
    same("in the directory", sorted(os.listdir(scratch("."))), ["second"])
