"""O_TMPFILE: a file that never had a name, and can still be given one"""
import os

from case import case, libc, same, scratch


@case
def tmpfile():
    fd = os.open(scratch("."), os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"hidden")
    yield
    same("content", os.pread(fd, 10, 0), b"hidden")
    same("mode", os.fstat(fd).st_mode & 0o777, 0o640)
    assert libc.linkat(-100, b"/proc/self/fd/%d" % fd, -100, scratch("named").encode(), 0x400) == 0
    same("by its name", open(scratch("named"), "rb").read(), b"hidden")
