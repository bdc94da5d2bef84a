"""A set of epoll shared over fork: each adds what the other has not"""
import os
import select

from case import case, fork, forever, same, until, scratch


@case
def epoll_forked():
    sets = select.epoll()
    reader, writer = os.pipe()

    def work():
        os.mkfifo(scratch("fifo"))
        other = os.open(scratch("fifo"), os.O_RDWR)
        sets.register(other, select.EPOLLIN)
        os.close(reader)
        os.write(os.open(scratch("done"), os.O_CREAT | os.O_WRONLY), b"x")
        forever()

    fork(work)
    until("the child", lambda: os.path.exists(scratch("done")) and os.path.getsize(scratch("done")))
    sets.register(reader, select.EPOLLIN)
    yield
    same("nothing", sets.poll(0), [])
    os.write(writer, b"x")
    same("own", sets.poll(0), [(reader, select.EPOLLIN)])
    os.read(reader, 1)
    fifo = os.open(scratch("fifo"), os.O_RDWR)
    os.write(fifo, b"y")
    same("the child's", len(sets.poll(0)), 1)
