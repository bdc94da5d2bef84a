"""A thread that waits until a full counter (eventfd) has room, one that waits for an empty one"""
import os
import threading

from case import case, same


@case
def eventfd_blocked():
    full, empty = os.eventfd(0), os.eventfd(0)
    os.eventfd_write(full, 2**64 - 2)
    found = []
    writer = threading.Thread(target=lambda: os.eventfd_write(full, 5), daemon=True)
    reader = threading.Thread(target=lambda: found.append(os.eventfd_read(empty)), daemon=True)
    writer.start()
    reader.start()
    yield
    assert writer.is_alive() and reader.is_alive()
    same("full", os.eventfd_read(full), 2**64 - 2)
    os.eventfd_write(empty, 9)
    writer.join(10)
    reader.join(10)
    same("written", os.eventfd_read(full), 5)
    same("read", found, [9])
