"""The time stamps and extended attributes of a deleted file"""
import os

from case import case, same, scratch


@case
def deleted_times():
    fd = os.open(scratch("ghost"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x")
    os.setxattr(fd, "user.color", b"blue")
    os.utime(fd, ns=(10**18 + 5, 10**18 + 7))
    os.unlink(scratch("ghost"))
    yield
    same("mtime", os.fstat(fd).st_mtime_ns, 10**18 + 7)
    same("xattr", os.getxattr(fd, "user.color"), b"blue")
