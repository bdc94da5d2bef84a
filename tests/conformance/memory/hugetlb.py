"""Huge pages of hugetlbfs, reserved and not touched"""
# refused: huge
import mmap

from case import case


@case
def hugetlb():
    # MAP_HUGETLB | MAP_NORESERVE: no page of the machine's is needed for it.
    memory = mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000 | 0x4000)
    yield
    memory.close()
