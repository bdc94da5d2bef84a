"""A memory file: name, seals, size, offset, a mapping, written while it is copied"""
import fcntl
import mmap
import os

from case import case, same


@case
def memfd():
    fd = os.memfd_create("some name", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, 1 << 20)
    view = mmap.mmap(fd, 1 << 20)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    os.lseek(fd, 77, os.SEEK_SET)
    os.fchmod(fd, 0o600)
    count = 0

    def change():
        nonlocal count
        count += 1
        view[count * 4096 % (1 << 20)] = count & 255

    change()
    yield change
    same("seals", fcntl.fcntl(fd, fcntl.F_GET_SEALS), fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    same("name", os.readlink(f"/proc/self/fd/{fd}"), "/memfd:some name (deleted)")
    same("offset", os.lseek(fd, 0, os.SEEK_CUR), 77)
    same("mode", os.fstat(fd).st_mode & 0o777, 0o600)
    same("content", os.pread(fd, 1, count * 4096 % (1 << 20)), bytes([count & 255]))
    try:
        os.ftruncate(fd, 5)
        raise AssertionError("it shrinks")
    except PermissionError:
        pass
