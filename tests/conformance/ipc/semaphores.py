"""System V semaphores: values, who changed them last, that they are in use, and a child that waits"""
import ctypes
import os
import struct

from case import case, fork, read, same, status, syscall, until

KEY = 0x4702


def operate(identifier, number, step):
    operation = ctypes.create_string_buffer(struct.pack("Hhh", number, step, 0))
    syscall(65, identifier, ctypes.addressof(operation), 1)


@case
def semaphores():
    identifier = syscall(64, KEY | os.getpid() << 16, 4, 0o1600)
    fresh = syscall(64, 0, 2, 0o1640)
    try:
        # SETVAL
        syscall(66, identifier, 1, 16, 5)
        operate(identifier, 2, 3)
        pid = fork(lambda: operate(identifier, 0, -2))

        def look():
            rows = [line.split() for line in read("/proc/sysvipc/sem").splitlines()[1:]]
            # key, id, perms, nsems; uid, gid, cuid, cgid; whether it was ever used
            rows = [row[:8] + [row[8] != "0"] for row in rows if int(row[1]) in (identifier, fresh)]
            # GETVAL, GETPID, GETNCNT
            about = [[syscall(66, identifier, number, what) for number in range(4)] for what in (12, 11, 14)]
            return rows, about, [syscall(66, fresh, number, 11) for number in range(2)]

        until("the child waits", lambda: look()[1][2][0] == 1)
        before = look()
        yield
        until("the child waits", lambda: look()[1][2][0] == 1)
        same("semaphores", look(), before)
        same("it waits", os.waitpid(pid, os.WNOHANG), (0, 0))
        operate(identifier, 0, 2)
        same("end", os.waitpid(pid, 0)[1], 0)
    finally:
        # IPC_RMID
        syscall(66, identifier, 0, 0)
        syscall(66, fresh, 0, 0)
