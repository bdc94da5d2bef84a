"""One-shot entries of epoll that have fired stay silent, and can be armed again"""
import os
import select

from case import case, same


@case
def epoll_fired():
    sets = select.epoll()
    readers = []
    for flags in (select.EPOLLONESHOT, select.EPOLLONESHOT | select.EPOLLET):
        reader, writer = os.pipe()
        os.write(writer, b"x")
        sets.register(reader, select.EPOLLIN | flags)
        readers.append(reader)
    same("before", len(sets.poll(0)), 2)
    yield
    same("silent", sets.poll(0), [])
    for reader in readers:
        sets.modify(reader, select.EPOLLIN | select.EPOLLONESHOT)
    same("armed", sorted(sets.poll(0)), sorted((reader, select.EPOLLIN) for reader in readers))
    same("silent again", sets.poll(0), [])
