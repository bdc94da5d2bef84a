"""A POSIX read lock by a descriptor that is open for reading, with a writer of the same file beside it"""
import fcntl
import os
import struct

from case import case, fork, same, scratch


@case
def posix_read_only():
    writer = os.open(scratch("lock"), os.O_CREAT | os.O_WRONLY)
    reader = os.open(scratch("lock"), os.O_RDONLY)
    fcntl.lockf(reader, fcntl.LOCK_SH, 5, 0)
    fcntl.lockf(writer, fcntl.LOCK_EX, 5, 5)
    yield

    def work():
        fd = os.open(scratch("lock"), os.O_RDWR)
        found = []
        for start in (0, 5, 10):
            raw = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("=hhiqqi4x", fcntl.F_WRLCK, 0, 0, start, 5, 0))
            found.append(struct.unpack("=hhiqqi4x", raw)[0])
        same("locks", found, [fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK])

    same("the child", os.waitpid(fork(work), 0)[1], 0)
