"""A segment of System V shared memory that two processes have attached, and which goes with the last of them"""
# refused-here: host: System V
import ctypes
import os

from case import case, fork, libc, read, same, syscall, until

SIZE = 1 << 20


def row(segment):
    rows = [line.split() for line in read("/proc/sysvipc/shm").splitlines()[1:]]
    # key, perms, size, nattch
    return [(row[0], row[2], row[3], row[6]) for row in rows if int(row[1]) == segment]


@case
def shm_attached():
    segment = syscall(29, 0x4701, SIZE, 0o1600)
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(segment, None, 0)
    ctypes.memset(address, 7, SIZE)
    # Removed when the last one lets go of it.
    syscall(31, segment, 0, 0)
    word = ctypes.c_uint64.from_address(address)
    answer = ctypes.c_uint64.from_address(address + SIZE // 2)
    word.value, answer.value, counted = 1, 0, 1

    def child():
        while word.value:
            answer.value = word.value

    pid = fork(child)
    before = row(segment)
    assert before[0][1] == "1600" and before[0][3] == "2", before

    def change():
        nonlocal counted
        counted += 1
        word.value = counted

    yield change
    same("segment", row(segment), before)
    same("word", word.value, counted)
    until("the child's answer", lambda: answer.value == counted)
    same("content", ctypes.string_at(address + 4096, 65536), b"\7" * 65536)
    word.value = 0
    same("end", os.waitpid(pid, 0)[1], 0)
    libc.shmdt(ctypes.c_void_p(address))
    same("gone", row(segment), [])
