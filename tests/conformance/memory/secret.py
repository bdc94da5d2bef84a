"""Mapped memory that the kernel itself does not map (memfd_secret)"""
# refused: secret memory (memfd_secret)
import mmap
import os

from case import case, same, syscall


@case
def secret():
    fd = syscall(447, 0)
    os.ftruncate(fd, mmap.PAGESIZE)
    memory = mmap.mmap(fd, mmap.PAGESIZE)
    os.close(fd)
    memory[:4] = b"kept"
    yield
    same("contents", memory[:4], b"kept")
