"""An edge of epoll that was seen already, of data that nobody has read"""
# lost: an edge that was seen
import os
import select

from case import case, same


@case
def epoll_edge_seen():
    sets = select.epoll()
    reader, writer = os.pipe()
    sets.register(reader, select.EPOLLIN | select.EPOLLET)
    os.write(writer, b"x")
    same("before", sets.poll(0), [(reader, select.EPOLLIN)])
    yield
    found = sets.poll(0)
    same("data", os.read(reader, 9), b"x")
    os.write(writer, b"y")
    same("the next edge", sets.poll(0), [(reader, select.EPOLLIN)])
    same("an edge that was seen", found, [])
