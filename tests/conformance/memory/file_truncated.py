"""A mapped file that has become shorter: the pages behind its end raise SIGBUS"""
import ctypes
import mmap
import os
import signal

from case import address_of, case, same, scratch

PAGE = mmap.PAGESIZE


@case
def file_truncated():
    fd = os.open(scratch("file"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * 8 * PAGE)
    areas = [mmap.mmap(fd, 8 * PAGE, flags=flags) for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE)]
    addresses = [address_of(area) for area in areas]
    areas[1][0] = ord("y")
    os.ftruncate(fd, 3 * PAGE)
    yield
    same("content", (areas[0][0], areas[1][0], areas[1][PAGE]), (ord("x"), ord("y"), ord("x")))
    for address in addresses:
        pid = os.fork()
        if pid == 0:
            ctypes.string_at(address + 5 * PAGE, 1)
            os._exit(0)
        same("touched, it ends with", os.waitpid(pid, 0)[1] & 127, int(signal.SIGBUS))
