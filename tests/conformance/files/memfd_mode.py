"""A memory file with another mode and owner, and one that is not to be run (MFD_NOEXEC_SEAL)"""
import errno
import os

from case import case, same


@case
def memfd_mode():
    fd = os.memfd_create("one")
    os.write(fd, b"contents")
    os.fchmod(fd, 0o640)
    os.fchown(fd, 5, 7)
    try:
        no_run = os.memfd_create("two", 0x8)
    except OSError as error:
        same("error", error.errno, errno.EINVAL)
        no_run = os.memfd_create("two")
    shape = lambda fd: (os.fstat(fd).st_mode, os.fstat(fd).st_uid, os.fstat(fd).st_gid)
    before = [shape(fd), shape(no_run)]
    yield
    same("shapes", [shape(fd), shape(no_run)], before)
    if before[1][0] & 0o111 == 0:
        try:
            os.fchmod(no_run, 0o777)
            assert False, "it can be run"
        except OSError as error:
            same("error", error.errno, errno.EPERM)
