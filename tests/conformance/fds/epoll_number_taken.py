"""epoll watches what was closed under its number and is open under another; the number is another file's"""
import os
import select

from case import case, same


@case
def epoll_number_taken():
    sets = select.epoll()
    pipes = []
    number = 700
    for _ in range(2):
        reader, writer = os.pipe()
        os.dup2(reader, number)
        sets.register(number, select.EPOLLIN)
        pipes.append((reader, writer))
    os.close(number)
    free = os.open("/dev/null", os.O_RDONLY)
    yield
    os.fstat(free)
    for reader, writer in pipes:
        os.write(writer, b"x")
        same("one", sets.poll(0), [(number, select.EPOLLIN)])
        os.read(reader, 1)
    same("none", sets.poll(0), [])
