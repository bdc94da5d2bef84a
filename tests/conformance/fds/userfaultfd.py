"""A userfaultfd that watches nothing"""
# refused: userfaultfd
import os

from case import case, syscall


@case
def userfaultfd():
    # UFFD_USER_MODE_ONLY
    fd = syscall(323, 1 | os.O_CLOEXEC)
    yield
    os.fstat(fd)
