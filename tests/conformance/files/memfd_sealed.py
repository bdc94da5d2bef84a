"""A memory file that is sealed for good, and one that was opened again for reading"""
import fcntl
import os

from case import case, same

ALL = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@case
def memfd_sealed():
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(fd, b"forever" * 10000)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, ALL)
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.lseek(reader, 7, os.SEEK_SET)
    plain = os.memfd_create("plain", 0)
    noexec = os.memfd_create("noexec", 8 | os.MFD_ALLOW_SEALING)
    before = fcntl.fcntl(noexec, fcntl.F_GET_SEALS)
    yield
    same("seals", fcntl.fcntl(fd, fcntl.F_GET_SEALS), ALL)
    same("content", (os.read(reader, 7), os.fstat(reader).st_size), (b"forever", 70000))
    same("flags", fcntl.fcntl(reader, fcntl.F_GETFL) & 3, os.O_RDONLY)
    same("no sealing", fcntl.fcntl(plain, fcntl.F_GET_SEALS), fcntl.F_SEAL_SEAL)
    same("not executable", (fcntl.fcntl(noexec, fcntl.F_GET_SEALS), os.fstat(noexec).st_mode & 0o111), (before, 0))
    try:
        os.pwrite(fd, b"x", 0)
        raise AssertionError("it can be written")
    except PermissionError:
        pass
