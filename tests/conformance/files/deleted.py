"""A deleted file: content, offset, owner, mode, one more description of it, a mapping"""
import mmap
import os

from case import case, same, scratch


@case
def deleted():
    fd = os.open(scratch("ghost"), os.O_CREAT | os.O_RDWR, 0o604)
    os.write(fd, b"0123456789" * 1000)
    again = os.open(scratch("ghost"), os.O_RDONLY)
    os.fchown(fd, 12, 13)
    view = mmap.mmap(fd, 10000)
    os.unlink(scratch("ghost"))
    os.lseek(again, 5, os.SEEK_SET)
    count = 0

    def change():
        nonlocal count
        count += 1
        view[20:24] = b"%04d" % (count % 10000)

    change()
    yield change
    same("through the mapping", os.pread(again, 4, 20), b"%04d" % (count % 10000))
    os.pwrite(fd, b"AB", 0)
    same("written", view[:3], b"AB2")
    same("offsets", (os.read(again, 2), os.lseek(fd, 0, os.SEEK_CUR)), (b"56", 10000))
    found = os.fstat(fd)
    same("attributes", (found.st_nlink, found.st_uid, found.st_gid, found.st_mode & 0o777, found.st_size),
         (0, 12, 13, 0o604, 10000))
    assert found.st_ino == os.fstat(again).st_ino
