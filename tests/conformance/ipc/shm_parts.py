"""Parts of a segment of System V shared memory: one for reading, one that was moved, one of which a piece is gone"""
# refused-here: host: System V
import ctypes
import errno

from case import case, libc, mapping, read, same, syscall

PAGE = 4096
SIZE = 8 * PAGE


@case
def shm_parts():
    segment = syscall(29, 0, SIZE, 0o1600)
    libc.shmat.restype = ctypes.c_void_p
    try:
        whole = libc.shmat(segment, None, 0)
        for page in range(8):
            ctypes.memset(whole + page * PAGE, page + 1, PAGE)
        # SHM_RDONLY
        reading = libc.shmat(segment, None, 0o10000)
        pieces = libc.shmat(segment, None, 0)
        # Not the third page, and the fourth is not to be written.
        syscall(11, pieces + 2 * PAGE, PAGE)
        syscall(10, pieces + 3 * PAGE, PAGE, 1)
        # In its place comes something else.
        other = syscall(9, pieces + 2 * PAGE, PAGE, 3, 0x100022, -1, 0)
        ctypes.memset(other, 99, PAGE)

        def look():
            rows = [line.split() for line in read("/proc/sysvipc/shm").splitlines()[1:]]
            attached = [row[6] for row in rows if int(row[1]) == segment]
            places = [whole, reading, pieces, pieces + 3 * PAGE, pieces + 4 * PAGE]
            return attached, [(found["mode"], found["range"], found["name"]) for found in map(mapping, places)]

        before = look()
        yield
        same("mappings", look(), before)
        same("third page", ctypes.string_at(pieces + 2 * PAGE, 2), b"cc")
        for page in (0, 1, 3, 4, 5, 6, 7):
            same("page", ctypes.string_at(pieces + page * PAGE, 1), bytes([page + 1]))
        ctypes.memset(pieces + 7 * PAGE, 55, 1)
        same("one memory", [ctypes.string_at(at + 7 * PAGE, 1) for at in (whole, reading)], [b"7", b"7"])
        try:
            syscall(10, reading, PAGE, 3)
            assert False, "it can be made writable"
        except OSError as error:
            same("error", error.errno, errno.EACCES)
        same("detached", [libc.shmdt(ctypes.c_void_p(at)) for at in (whole, reading, pieces)], [0, 0, 0])
        same("nobody", look_count(segment), "0")
    finally:
        syscall(31, segment, 0, 0)


def look_count(segment):
    rows = [line.split() for line in read("/proc/sysvipc/shm").splitlines()[1:]]
    return next(row[6] for row in rows if int(row[1]) == segment)
