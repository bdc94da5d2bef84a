"""Shared memory with a name (shm_open)"""
import mmap
import os

from case import case, same


@case
def shm_named():
    path = f"/dev/shm/gantry-{os.getpid()}"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.ftruncate(fd, 4096)
        memory = mmap.mmap(fd, 4096)
        memory[:5] = b"hello"
        yield
        same("content", memory[:5], b"hello")
        memory[:5] = b"HELLO"
        same("by its name", os.pread(os.open(path, os.O_RDONLY), 5, 0), b"HELLO")
    finally:
        os.unlink(path)
