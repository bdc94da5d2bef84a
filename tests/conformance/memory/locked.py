"""Memory that is locked: all that is there (mlockall) but for a part"""
# not: move: the container may not lock so much (RLIMIT_MEMLOCK)
import mmap

from case import address_of, case, mapping, same, syscall

PAGE = mmap.PAGESIZE


@case
def locked():
    memory = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    unlocked = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # MCL_CURRENT | MCL_ONFAULT
    syscall(151, 5)
    syscall(150, address_of(unlocked), 16 * PAGE)
    before = [mapping(address_of(area))["VmFlags"] for area in (memory, unlocked)]
    assert "lo" in before[0] and "lo" not in before[1], before
    yield
    same("flags", [mapping(address_of(area))["VmFlags"] for area in (memory, unlocked)], before)
