"""A pipe without a reader: writing fails, polling says so"""
import errno
import os
import select

from case import case, same


@case
def reader_gone():
    reader, writer = os.pipe()
    os.write(writer, b"lost")
    os.close(reader)
    yield
    poll = select.poll()
    poll.register(writer, select.POLLOUT)
    same("poll", poll.poll(0), [(writer, select.POLLOUT | select.POLLERR)])
    try:
        os.write(writer, b"x")
        raise AssertionError("it was written")
    except BrokenPipeError as error:
        same("error", error.errno, errno.EPIPE)
