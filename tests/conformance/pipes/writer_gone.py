"""A pipe without a writer: what waits, then the end"""
import os
import select

from case import case, same


@case
def writer_gone():
    reader, writer = os.pipe()
    os.write(writer, b"waiting")
    os.close(writer)
    empty, writer = os.pipe()
    os.close(writer)
    yield
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(empty, select.POLLIN)
    same("poll", sorted(poll.poll(0)), sorted([(reader, select.POLLIN | select.POLLHUP), (empty, select.POLLHUP)]))
    same("data", (os.read(reader, 3), os.read(reader, 9), os.read(reader, 9)), (b"wai", b"ting", b""))
