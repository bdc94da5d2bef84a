"""What madvise sets on memory: not for children, wiped or not for them, not dumped, merged, huge pages, order of reading"""
import mmap

from case import address_of, case, mapping, same, syscall

PAGE = mmap.PAGESIZE
# MADV_DONTFORK, WIPEONFORK, DONTDUMP, MERGEABLE, HUGEPAGE, NOHUGEPAGE, SEQUENTIAL, RANDOM
ADVICE = {10: "dc", 18: "wf", 16: "dd", 12: "mg", 14: "hg", 15: "nh", 2: "sr", 1: "rr"}


@case
def advice():
    places = {}
    for kind in ADVICE:
        memory = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory[0] = kind
        syscall(28, address_of(memory), 4 * PAGE, kind)
        places[kind] = memory
    before = {kind: mapping(address_of(memory))["VmFlags"] for kind, memory in places.items()}
    for kind, flag in ADVICE.items():
        assert flag in before[kind], (kind, before[kind])
    yield
    for kind, memory in places.items():
        same(f"flags after advice {kind}", mapping(address_of(memory))["VmFlags"], before[kind])
        same("content", memory[0], kind)
