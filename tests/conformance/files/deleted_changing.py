"""Deleted files that are written to all the time: by write, through a mapping, and by one that is not open any more"""
import mmap
import os

from case import case, same, scratch

SIZE = 4 << 20


@case
def deleted_changing():
    written = os.open(scratch("written"), os.O_CREAT | os.O_RDWR)
    mapped = os.open(scratch("mapped"), os.O_CREAT | os.O_RDWR)
    closed = os.open(scratch("closed"), os.O_CREAT | os.O_RDWR)
    for fd in (written, mapped, closed):
        os.truncate(fd, SIZE)
        os.pwrite(fd, b"begin", 123)
    memory = mmap.mmap(mapped, SIZE)
    alone = mmap.mmap(closed, SIZE)
    os.close(closed)
    for name in ("written", "mapped", "closed"):
        os.unlink(scratch(name))
    count = 0

    def change():
        nonlocal count
        count += 1
        at = count * 4096 * 7 % SIZE
        os.pwrite(written, b"%8d" % count, at)
        memory[at + 8:at + 16] = b"%8d" % count
        alone[at + 16:at + 24] = b"%8d" % count
        if count % 50 == 0:
            os.truncate(written, SIZE // 2)
            os.truncate(written, SIZE)

    def expected(offset, cut):
        content = bytearray(SIZE)
        content[123:128] = b"begin"
        for number in range(1, count + 1):
            at = number * 4096 * 7 % SIZE
            content[at + offset:at + offset + 8] = b"%8d" % number
            if cut and number % 50 == 0:
                content[SIZE // 2:] = bytes(SIZE - SIZE // 2)
        return bytes(content)

    yield change
    same("what write(2) wrote", os.pread(written, SIZE, 0) == expected(0, True), True)
    same("what a mapping wrote", os.pread(mapped, SIZE, 0) == expected(8, False), True)
    same("the mapping", memory[:] == expected(8, False), True)
    same("the mapping of a closed file", alone[:] == expected(16, False), True)
    memory[0:5] = b"again"
    same("shared", os.pread(mapped, 5, 0), b"again")
