"""A semaphore without a name any more, which a child waits for"""
import ctypes
import os

from case import case, fork, libc, same


@case
def sem_unlinked():
    name = b"/gantry-%d" % os.getpid()
    libc.sem_open.restype = ctypes.c_void_p
    semaphore = ctypes.c_void_p(libc.sem_open(name, os.O_CREAT, 0o600, 0))
    libc.sem_unlink(name)
    pid = fork(lambda: libc.sem_wait(semaphore))
    yield
    same("it waits", os.waitpid(pid, os.WNOHANG), (0, 0))
    libc.sem_post(semaphore)
    same("end", os.waitpid(pid, 0)[1], 0)
