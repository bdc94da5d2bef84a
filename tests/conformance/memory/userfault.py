"""Memory that the program watches with userfaultfd"""
# refused: userfaultfd
import ctypes
import fcntl
import mmap
import struct

from case import address_of, case, same, syscall


@case
def userfault():
    memory = mmap.mmap(-1, 4 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # UFFD_USER_MODE_ONLY
    fd = syscall(323, 1)
    # UFFDIO_API, UFFDIO_REGISTER (missing pages)
    fcntl.ioctl(fd, 0xC018AA3F, struct.pack("QQQ", 0xAA, 0, 0))
    fcntl.ioctl(fd, 0xC020AA00, struct.pack("QQQQ", address_of(memory), 4 * mmap.PAGESIZE, 1, 0))
    yield
    page = ctypes.create_string_buffer(b"x" * mmap.PAGESIZE, 2 * mmap.PAGESIZE)
    source = ctypes.addressof(page)
    # UFFDIO_COPY
    fcntl.ioctl(fd, 0xC028AA03, struct.pack("QQQQq", address_of(memory), source, mmap.PAGESIZE, 0, 0))
    same("content", memory[0], ord("x"))
