"""A semaphore with a name (sem_open): the C library has made its file under another one"""
import ctypes
import os

from case import case, libc, same


@case
def sem_named():
    name = b"/gantry-%d" % os.getpid()
    libc.sem_open.restype = ctypes.c_void_p
    semaphore = ctypes.c_void_p(libc.sem_open(name, os.O_CREAT, 0o600, 2))
    try:
        yield
        same("value", [libc.sem_trywait(semaphore) for _ in range(3)], [0, 0, -1])
    finally:
        libc.sem_unlink(name)
