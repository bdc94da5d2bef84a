"""Memory that a device writes to while it is copied: files that are read past the page cache (O_DIRECT)"""
import ctypes
import mmap
import os
import threading

from case import address_of, case, libc, same, scratch, until

BLOCK, BLOCKS, BUFFERS, READERS = 2 << 20, 6, 24, 4


def pattern(number):
    return bytes((number * 37 + i) % 251 for i in range(251)) * (BLOCK // 251 + 1)


@case
def direct_read():
    path = scratch("blocks")
    blocks = [pattern(number)[:BLOCK] for number in range(BLOCKS)]
    with open(path, "wb") as file:
        for block in blocks:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffers = [mmap.mmap(-1, BLOCK) for _ in range(BUFFERS)]
    places = [address_of(buffer) for buffer in buffers]
    holds = [None] * BUFFERS
    stop = threading.Event()
    failed, turns = [], [0]
    wanted = [ctypes.create_string_buffer(block, BLOCK) for block in blocks]

    def check(at):
        if holds[at] is not None and libc.memcmp(places[at], wanted[holds[at]], BLOCK) != 0:
            failed.append(f"buffer {at} is not block {holds[at]}")


    def reader(first):
        turn = 0
        while not stop.is_set():
            for at in range(first, BUFFERS, READERS):
                turn += 1
                number = (turn + at) % BLOCKS
                check(at)
                holds[at] = None
                ctypes.memset(places[at], 0, BLOCK)
                length = os.preadv(fd, [buffers[at]], number * BLOCK)
                if length != BLOCK:
                    failed.append(f"read {length}")
                holds[at] = number
                turns[0] += 1
                if stop.is_set():
                    return

    threads = [threading.Thread(target=reader, args=(first,), daemon=True) for first in range(READERS)]
    for thread in threads:
        thread.start()
    until("each was read once", lambda: turns[0] > 2 * BUFFERS)
    yield
    stop.set()
    for thread in threads:
        thread.join()
    for at in range(BUFFERS):
        check(at)
    same("what was read", failed, [])
