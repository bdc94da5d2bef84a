"""Guard pages in shared memory, in mappings of files, and in memory that a child shares"""
import errno
import mmap
import os

from case import address_of, byte_at, case, fork, forever, same, scratch, syscall

PAGE = mmap.PAGESIZE
COUNT = 8


@case
def guard_mapped():
    with open(scratch("data"), "wb") as file:
        file.write(bytes([7]) * COUNT * PAGE)
    fd = os.open(scratch("data"), os.O_RDWR)
    memfd = os.memfd_create("guarded")
    os.truncate(memfd, COUNT * PAGE)
    kinds = {
        "private": (-1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
        "shared": (-1, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
        "private file": (fd, mmap.MAP_PRIVATE),
        "shared file": (fd, mmap.MAP_SHARED),
        "memfd": (memfd, mmap.MAP_SHARED),
        "private memfd": (memfd, mmap.MAP_PRIVATE),
    }
    areas = {name: mmap.mmap(of, COUNT * PAGE, flags=flags) for name, (of, flags) in kinds.items()}
    for area in areas.values():
        for page in range(COUNT):
            area[page * PAGE] = page + 1
    for name, area in areas.items():
        try:
            # MADV_GUARD_INSTALL
            syscall(28, address_of(area) + 2 * PAGE, 2 * PAGE, 102)
        except OSError as error:
            # Linux 6.13 and 6.14 make them in private memory alone.
            if error.errno != errno.EINVAL or name == "private":
                raise

    def look():
        return {name: [byte_at(address_of(area) + page * PAGE) for page in range(COUNT)] for name, area in areas.items()}

    before = look()
    same("private", before["private"], [1, 2, None, None, 5, 6, 7, 8])
    end, begin = os.pipe()
    asked, ask = os.pipe()

    def child():
        os.read(asked, 1)
        os.write(begin, repr(look()).encode())
        forever()

    pid = fork(child)
    yield
    same("pages", look(), before)
    os.write(ask, b"x")
    same("pages of the child", eval(os.read(end, 65536)), before)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    # What is below belongs to the object or the file.
    for name in ("shared", "shared file", "memfd"):
        if before[name][2] is None:
            syscall(28, address_of(areas[name]) + 2 * PAGE, 2 * PAGE, 103)
    for name in ("shared", "shared file", "memfd"):
        found = [byte_at(address_of(areas[name]) + page * PAGE) for page in range(COUNT)]
        same(f"{name} without guard pages", found, list(range(1, COUNT + 1)))
