"""More huge pages than a target has free: mapped and not touched, so that they are only claimed"""
# refused-here: move: huge pages of 2048 KiB, and the target has
# huge: 16
import mmap

from case import HUGE, case, huge_pages, same


@case
def hugetlb_poor():
    # Nodes of the suite are on one machine.
    most = huge_pages("Free") - huge_pages("Rsvd") - 2
    assert most > 8, f"{most} huge pages"
    memory = mmap.mmap(-1, most * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
    memory[0] = count = 1

    def change():
        nonlocal count
        count += 1
        memory[1] = count & 255

    change()
    yield change
    same("content", (memory[0], memory[1]), (1, count & 255))
    for page in range(1, most):
        memory[page * HUGE] = 1
