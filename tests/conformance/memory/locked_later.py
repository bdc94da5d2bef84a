"""All memory that a process will have is locked (mlockall, MCL_FUTURE)"""
# not: move: the container may not lock so much (RLIMIT_MEMLOCK)
import mmap

from case import address_of, case, mapping, syscall


@case
def locked_later():
    # MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT
    syscall(151, 7)
    yield
    later = mmap.mmap(-1, 16 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    assert {"lo", "lf"} <= mapping(address_of(later))["VmFlags"], "what comes later is not locked"
