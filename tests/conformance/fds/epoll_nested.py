"""Sets of epoll in sets of epoll, three deep"""
import os
import select

from case import case, same


@case
def epoll_nested():
    outer, middle, inner = (select.epoll() for _ in range(3))
    reader, writer = os.pipe()
    outer.register(middle.fileno(), select.EPOLLIN)
    middle.register(inner.fileno(), select.EPOLLIN | select.EPOLLET)
    inner.register(reader, select.EPOLLIN)
    yield
    same("nothing", outer.poll(0), [])
    os.write(writer, b"x")
    same("outer", outer.poll(0), [(middle.fileno(), select.EPOLLIN)])
    same("middle", middle.poll(0), [(inner.fileno(), select.EPOLLIN)])
    same("inner", inner.poll(0), [(reader, select.EPOLLIN)])
