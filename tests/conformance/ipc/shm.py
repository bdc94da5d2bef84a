"""A segment of System V shared memory that nobody has attached, found by its key, with another owner and mode"""
# refused-here: host: System V
import ctypes
import os

from case import case, libc, read, same, syscall

SIZE = 3 * 4096 + 100


def table(name):
    rows = [line.split() for line in read(f"/proc/sysvipc/{name}").splitlines()[1:]]
    # key, id, perms, size; uid, gid, cuid, cgid
    return {int(row[1]): (int(row[0]), row[2], int(row[3]), row[7:11]) for row in rows}


def attach(identifier):
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(identifier, None, 0)
    assert address not in (None, ctypes.c_void_p(-1).value), "shmat"
    return address


@case
def shm():
    key = 0x47000000 | os.getpid() & 0xFFFFFF
    # Its number is not the first.
    others = [syscall(29, 0, 4096, 0o1600) for _ in range(3)]
    identifier = syscall(29, key, SIZE, 0o1640)
    for other in others:
        syscall(31, other, 0, 0)
    try:
        address = attach(identifier)
        ctypes.memset(address + 4096, 7, 8192)
        ctypes.memset(address + SIZE - 1, 9, 1)
        libc.shmdt(ctypes.c_void_p(address))
        before = table("shm")[identifier]
        yield
        same("segment", table("shm")[identifier], before)
        same("by its key", syscall(29, key, 0, 0), identifier)
        address = attach(identifier)
        content = ctypes.string_at(address, SIZE)
        same("content", content, b"\0" * 4096 + b"\7" * 8192 + b"\0" * 99 + b"\x09")
        libc.shmdt(ctypes.c_void_p(address))
    finally:
        # IPC_RMID
        syscall(31, identifier, 0, 0)
