"""Threads that wait in epoll_wait on one set, with an edge: one is woken"""
import os
import select
import threading

from case import case, same, until


@case
def epoll_waiters():
    sets = select.epoll()
    reader, writer = os.pipe()
    sets.register(reader, select.EPOLLIN | select.EPOLLET)
    found = []
    threads = [threading.Thread(target=lambda: found.append(sets.poll()), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    yield
    same("before", found, [])
    for count in (1, 2, 3):
        os.write(writer, b"x")
        until(f"{count} woken", lambda: len(found) >= count)
        same("woken", found, [[(reader, select.EPOLLIN)]] * count)
