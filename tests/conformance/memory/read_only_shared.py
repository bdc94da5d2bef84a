"""Shared memory of a file that was opened for reading cannot be made writable; one opened for both can"""
import ctypes
import mmap
import os

from case import case, libc, same, scratch

libc.mmap.restype = ctypes.c_void_p


@case
def read_only_shared():
    with open(scratch("file"), "wb") as file:
        file.write(b"x" * 8192)
    addresses = []
    for flags in (os.O_RDONLY, os.O_RDWR):
        fd = os.open(scratch("file"), flags)
        address = libc.mmap(None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
        os.close(fd)
        addresses.append(address)
    yield
    answers = [
        libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_WRITE)
        for address in addresses
    ]
    same("mprotect", answers, [-1, 0])
