"""A segment of System V shared memory that is attached, written and let go of, again and again"""
# refused-here: host: System V
import ctypes

from case import case, libc, same, syscall


@case
def shm_brief():
    segment = syscall(29, 0, 65536, 0o1600)
    libc.shmat.restype = ctypes.c_void_p
    counted = 0

    def change():
        nonlocal counted
        address = libc.shmat(segment, None, 0)
        counted += 1
        ctypes.c_uint64.from_address(address + counted % 16 * 4096).value = counted
        libc.shmdt(ctypes.c_void_p(address))

    try:
        change()
        yield change
        address = libc.shmat(segment, None, 0)
        found = [ctypes.c_uint64.from_address(address + page * 4096).value for page in range(16)]
        wanted = [max((n for n in range(max(1, counted - 15), counted + 1) if n % 16 == page), default=0) for page in range(16)]
        same("content", found, wanted)
        libc.shmdt(ctypes.c_void_p(address))
    finally:
        syscall(31, segment, 0, 0)
