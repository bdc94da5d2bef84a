"""Devices without a state: null, zero, full, random, urandom"""
import errno
import os
import stat

from case import case, same


@case
def devices():
    fds = {name: os.open("/dev/" + name, os.O_RDWR) for name in ("null", "zero", "full", "random", "urandom")}
    before = {name: os.fstat(fd).st_rdev for name, fd in fds.items()}
    yield
    for name, fd in fds.items():
        same(name, (os.fstat(fd).st_rdev, stat.S_ISCHR(os.fstat(fd).st_mode)), (before[name], True))
    same("null", (os.read(fds["null"], 5), os.write(fds["null"], b"x")), (b"", 1))
    same("zero", os.read(fds["zero"], 3), b"\0\0\0")
    try:
        os.write(fds["full"], b"x")
        raise AssertionError("full takes a byte")
    except OSError as error:
        same("full", error.errno, errno.ENOSPC)
    assert os.read(fds["urandom"], 16) != os.read(fds["random"], 16)
