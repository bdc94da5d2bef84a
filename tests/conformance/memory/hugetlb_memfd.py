"""Files in memory with huge pages (memfd_create, MFD_HUGETLB): size, seals, holes, mapped and not, privately too"""
# huge: 32
import fcntl
import mmap
import os

from case import HUGE, address_of, case, huge_pages, mapping, same, until

# MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB
FLAGS = 1 | 2 | 4
PUNCH = 1 | 2


def fallocate(file, mode, start, length):
    import ctypes
    from case import libc
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    assert libc.fallocate(file, mode, start, length) == 0, "fallocate"


@case
def hugetlb_memfd():
    file = os.memfd_create("pages of 2 MiB", FLAGS)
    os.ftruncate(file, 6 * HUGE)
    memory = mmap.mmap(file, 4 * HUGE)
    memory[0], memory[HUGE + 4096], memory[3 * HUGE] = 1, 2, 3
    fallocate(file, PUNCH, HUGE * 3, HUGE)
    # There, and never written.
    fallocate(file, 1, 5 * HUGE, HUGE)
    own = mmap.mmap(file, 4 * HUGE, flags=mmap.MAP_PRIVATE)
    own[HUGE + 4096] = 4
    own_zero = address_of(own)
    sealed = os.memfd_create("sealed", FLAGS)
    os.ftruncate(sealed, HUGE)
    with mmap.mmap(sealed, HUGE) as once:
        once[100] = 5
    # F_ADD_SEALS: F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
    fcntl.fcntl(sealed, 1033, 2 | 4 | 8)
    about = [(os.fstat(fd).st_size, os.fstat(fd).st_blocks, os.fstat(fd).st_mode, fcntl.fcntl(fd, 1034)) for fd in (file, sealed)]
    count = [0]

    def change():
        count[0] += 1
        memory[count[0] % 4 * 4096 + 7] = count[0] & 255
        own[8192] = count[0] & 255

    change()
    before = os.fstat(file).st_blocks, mapping(own_zero)["Private_Hugetlb"]
    free, claimed = huge_pages("Free"), huge_pages("Rsvd")
    yield change
    found = [(os.fstat(fd).st_size, os.fstat(fd).st_blocks, os.fstat(fd).st_mode, fcntl.fcntl(fd, 1034)) for fd in (file, sealed)]
    same("files", found, about)
    same("pages", (os.fstat(file).st_blocks, mapping(own_zero)["Private_Hugetlb"]), before)
    # At the target there is a claim on the page that was punched out, too.
    expected = [(free, claimed), (free, claimed + 1)]
    until("the copy that moved away is gone", lambda: (huge_pages("Free"), huge_pages("Rsvd")) in expected)
    same("name", os.readlink(f"/proc/self/fd/{file}"), "/memfd:pages of 2 MiB (deleted)")
    same("content", (memory[0], memory[HUGE + 4096], memory[3 * HUGE]), (1, 2, 0))
    same("through the file", (os.pread(file, 1, HUGE + 4096), os.pread(sealed, 1, 100)), (b"\2", b"\5"))
    same("counted", (memory[count[0] % 4 * 4096 + 7], own[8192]), (count[0] & 255,) * 2)
    same("privately", own[HUGE + 4096], 4)
    memory[3 * HUGE] = 9
