"""Transparent huge pages, written here and there"""
import mmap

from case import address_of, case, same, syscall

HUGE = 2 << 20


@case
def huge_pages():
    memory = mmap.mmap(-1, 5 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = address_of(memory)
    syscall(28, address, 5 * HUGE, 14)
    count = [0]

    def change():
        count[0] += 1
        memory[count[0] * 12289 % (5 * HUGE)] = count[0] % 255 + 1

    for _ in range(50):
        change()
    yield change
    for number in range(1, count[0] + 1):
        found = memory[number * 12289 % (5 * HUGE)]
        if found != number % 255 + 1 and number + 5 * HUGE > count[0]:
            same(f"write {number}", found, number % 255 + 1)
