"""Mapped files: private with written pages, shared and written while it is copied, read-only, with an offset"""
import mmap
import os

from case import address_of, case, mapping, same, scratch

PAGE = mmap.PAGESIZE


@case
def files():
    fd = os.open(scratch("file"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"".join(b"%04d" % page * (PAGE // 4) for page in range(16)))
    private = mmap.mmap(fd, 16 * PAGE, flags=mmap.MAP_PRIVATE)
    shared = mmap.mmap(fd, 8 * PAGE, offset=8 * PAGE)
    reading = mmap.mmap(fd, 4 * PAGE, prot=mmap.PROT_READ, offset=4 * PAGE)
    private[3 * PAGE:3 * PAGE + 4] = b"mine"
    count = [0]

    def change():
        count[0] += 1
        shared[PAGE:PAGE + 4] = b"%04d" % count[0]

    change()
    place = mapping(address_of(shared))["name"]
    yield change
    same("private", (private[3 * PAGE:3 * PAGE + 8], private[2 * PAGE:2 * PAGE + 4]), (b"mine0003", b"0002"))
    same("shared", shared[PAGE:PAGE + 8], b"%04d0009" % count[0])
    same("in the file", os.pread(fd, 4, 9 * PAGE), b"%04d" % count[0])
    same("read-only", reading[:4], b"0004")
    same("name", mapping(address_of(shared))["name"], place)
    os.pwrite(fd, b"new!", 5 * PAGE)
    same("seen in the mapping", reading[PAGE:PAGE + 4], b"new!")
