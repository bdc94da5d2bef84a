"""Counters (eventfd): zero, 64-bit values, semaphores, one that is full"""
import os
import select

from case import case, same

FULL = 2**64 - 2


@case
def eventfd():
    wanted = {}
    for flags in (0, os.EFD_SEMAPHORE, os.EFD_NONBLOCK, os.EFD_SEMAPHORE | os.EFD_NONBLOCK):
        for value in (0, 3, 2**63 + 5, FULL):
            fd = os.eventfd(0, flags)
            if value:
                os.eventfd_write(fd, value)
            wanted[fd] = (flags, value)
    yield
    for fd, (flags, value) in wanted.items():
        ready = select.select([fd], [fd], [], 0)
        same(f"ready of {flags:#o} {value}", (bool(ready[0]), bool(ready[1])), (value > 0, value < FULL))
        same("blocking", os.get_blocking(fd), not flags & os.EFD_NONBLOCK)
        if value:
            once = bool(flags & os.EFD_SEMAPHORE)
            same(f"value of {flags:#o}", os.eventfd_read(fd), 1 if once else value)
            same("rest", bool(select.select([fd], [], [], 0)[0]), once and value > 1)
