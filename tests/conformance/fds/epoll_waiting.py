"""Events of epoll that nobody has asked for yet: level, edge, one-shot"""
import os
import select

from case import case, same


@case
def epoll_waiting():
    sets = select.epoll()
    wanted = []
    for flags in (0, select.EPOLLET, select.EPOLLONESHOT):
        reader, writer = os.pipe()
        sets.register(reader, select.EPOLLIN | flags)
        os.write(writer, b"x")
        wanted.append((reader, select.EPOLLIN))
    yield
    same("events", sorted(sets.poll(0)), sorted(wanted))
    same("again", sets.poll(0), wanted[:1])
