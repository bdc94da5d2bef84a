"""A segment of System V shared memory that is attached"""
# refused: System V
import ctypes

from case import case, libc, same, syscall


@case
def shm_attached():
    segment = syscall(29, 0, 65536, 0o1600)
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(segment, None, 0)
    # Removed when the last one lets go of it.
    syscall(31, segment, 0, 0)
    ctypes.memset(address, 7, 65536)
    yield
    same("content", ctypes.string_at(address, 65536), b"\7" * 65536)
