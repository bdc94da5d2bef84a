"""All memory that a process will have is locked and filled at once, and nothing of what it has (mlockall, MCL_FUTURE)"""
# not: move: the container may not lock so much (RLIMIT_MEMLOCK)
import mmap

from case import address_of, case, mapping, same, syscall


@case
def locked_later_filled():
    earlier = mmap.mmap(-1, 16 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # MCL_FUTURE
    syscall(151, 2)
    yield
    assert "lo" not in mapping(address_of(earlier))["VmFlags"], "what was there is locked"
    later = mmap.mmap(-1, 16 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    found = mapping(address_of(later))
    assert "lo" in found["VmFlags"] and "lf" not in found["VmFlags"], "what comes later is not locked"
    assert int(found["Rss"].split()[0]) >= 64, "what comes later is not filled"
    same("munlockall", syscall(152), 0)
