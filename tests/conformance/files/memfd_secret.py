"""Memory that the kernel itself does not map (memfd_secret)"""
# refused: secret memory (memfd_secret)
import os

from case import case, syscall


@case
def memfd_secret():
    fd = syscall(447, 0)
    os.ftruncate(fd, 4096)
    yield
    os.fstat(fd)
