"""A deleted file of 200 MiB with little in it"""
import os

from case import case, same, scratch


@case
def deleted_sparse():
    fd = os.open(scratch("ghost"), os.O_CREAT | os.O_RDWR)
    for at in (0, 70 << 20, 200 << 20):
        os.pwrite(fd, b"some%d" % at, at)
    os.unlink(scratch("ghost"))
    yield
    same("size", os.fstat(fd).st_size, (200 << 20) + 13)
    for at in (0, 70 << 20, 200 << 20):
        same("content", os.pread(fd, 16, at).rstrip(b"\0"), b"some%d" % at)
        same("a hole", os.pread(fd, 4096, at + (1 << 20)).strip(b"\0"), b"")
    assert os.fstat(fd).st_blocks * 512 < 1 << 20, "its holes are filled"
