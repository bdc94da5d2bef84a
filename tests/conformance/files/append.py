"""A file open for appending, with O_APPEND and its offset"""
import fcntl
import os

from case import case, same, scratch


@case
def append():
    fd = os.open(scratch("log"), os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o640)
    expected = bytearray()

    def change():
        if len(expected) < 1 << 20:
            expected.extend(b"%06d\n" % (len(expected) // 7))
            os.write(fd, expected[-7:])

    change()
    yield change
    os.lseek(fd, 3, os.SEEK_SET)
    change()
    same("content", open(scratch("log"), "rb").read(), bytes(expected))
    same("O_APPEND", bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND), True)
    same("mode", os.fstat(fd).st_mode & 0o777, 0o640)
