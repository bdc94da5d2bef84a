"""Sets of epoll: level, edge, one-shot, exclusive, each with its data"""
import os
import select
import struct
import ctypes

from case import case, libc, same


@case
def epoll():
    sets = select.epoll()
    wanted, pipes = {}, {}
    modes = (0, select.EPOLLET, select.EPOLLONESHOT, select.EPOLLEXCLUSIVE, select.EPOLLET | select.EPOLLONESHOT)
    for at, mode in enumerate(modes):
        reader, writer = os.pipe()
        data = 0xF00DFACE00000000 + at
        event = ctypes.create_string_buffer(struct.pack("=IQ", select.EPOLLIN | mode, data))
        assert libc.epoll_ctl(sets.fileno(), 1, reader, event) == 0
        wanted[data], pipes[data] = mode, (reader, writer)

    def take():
        block = ctypes.create_string_buffer(12 * 16)
        count = libc.epoll_wait(sets.fileno(), block, 16, 0)
        return dict(reversed(struct.unpack_from("=IQ", block.raw, 12 * at)) for at in range(count))

    yield
    same("nothing is ready", take(), {})
    for _, writer in pipes.values():
        os.write(writer, b"x")
    same("all are", take(), {data: select.EPOLLIN for data in wanted})
    level = {data: select.EPOLLIN for data, mode in wanted.items() if mode in (0, select.EPOLLEXCLUSIVE)}
    same("the level is", take(), level)
    for _, writer in pipes.values():
        os.write(writer, b"y")
    edge = {data: select.EPOLLIN for data, mode in wanted.items() if mode == select.EPOLLET}
    same("and the edge", take(), level | edge)
