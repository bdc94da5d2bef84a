"""A thousand mappings of one page each, with different rights"""
import mmap

from case import address_of, case, mapping, same, syscall

PAGE = mmap.PAGESIZE


@case
def many():
    memory = mmap.mmap(-1, 1000 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = address_of(memory)
    for page in range(1000):
        memory[page * PAGE:page * PAGE + 4] = b"%04d" % page
    for page in range(0, 1000, 2):
        syscall(10, address + page * PAGE, PAGE, 1)
    before = [mapping(address + page * PAGE)["mode"] for page in (0, 1, 500, 999)]
    same("rights", before, ["r--p", "rw-p", "r--p", "rw-p"])
    yield
    same("rights", [mapping(address + page * PAGE)["mode"] for page in (0, 1, 500, 999)], before)
    same("pages that differ", [page for page in range(1000) if memory[page * PAGE:page * PAGE + 4] != b"%04d" % page], [])
