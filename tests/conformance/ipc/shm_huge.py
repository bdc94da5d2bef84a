"""Segments of System V shared memory with huge pages (SHM_HUGETLB), attached, in part and not attached"""
# refused-here: host: System V
# huge: 24
import ctypes

from case import HUGE, case, libc, read, same, syscall

# SHM_HUGETLB
FLAGS = 0o4000 | 0o1600


def row(segment):
    rows = [line.split() for line in read("/proc/sysvipc/shm").splitlines()[1:]]
    # key, perms, size, nattch
    return [(row[0], row[2], row[3], row[6]) for row in rows if int(row[1]) == segment]


@case
def shm_huge():
    # The end lies within a page.
    size = 3 * HUGE + 4097
    segment = syscall(29, 0x4A01, size, FLAGS)
    parts = syscall(29, 0x4A02, 3 * HUGE, FLAGS)
    alone = syscall(29, 0x4A03, HUGE, FLAGS)
    try:
        libc.shmat.restype = ctypes.c_void_p
        address, middle, other = [libc.shmat(each, None, 0) for each in (segment, parts, alone)]
        ctypes.memset(other + 99, 3, 1)
        libc.shmdt(ctypes.c_void_p(other))
        ctypes.memset(middle + HUGE, 5, 2)
        libc.munmap(ctypes.c_void_p(middle), ctypes.c_size_t(HUGE))
        ctypes.memset(address + 2 * HUGE, 7, 5000)
        before = [row(each) for each in (segment, parts, alone)]
        word = ctypes.c_uint64.from_address(address)
        word.value = 0

        def change():
            word.value += 1

        change()
        yield change
        same("segments", [row(each) for each in (segment, parts, alone)], before)
        same("content", ctypes.string_at(address + 2 * HUGE, 5001), b"\7" * 5000 + b"\0")
        same("a part", ctypes.string_at(middle + HUGE, 3), b"\5\5\0")
        assert word.value > 0
        other = libc.shmat(alone, None, 0)
        same("not attached", ctypes.string_at(other + 98, 3), b"\0\3\0")
        ctypes.memset(address + HUGE, 1, 1)
        ctypes.memset(address + size - 1, 1, 1)
    finally:
        for each in (segment, parts, alone):
            syscall(31, each, 0, 0)
