"""A pipe whose slots are all taken by small pieces: it is full"""
import fcntl
import os
import select

from case import case, same


@case
def small_slots():
    # A writer that does not join pieces leaves one in each slot.
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)
    count = 0
    try:
        while True:
            os.write(writer, b"%d" % (count % 10))
            count += 1
    except BlockingIOError:
        pass
    fcntl.fcntl(writer, fcntl.F_SETFL, os.O_NONBLOCK)
    yield
    same("full", select.select([], [writer], [], 0)[1], [])
    same("packets", [os.read(reader, 9) for _ in range(count)], [b"%d" % (at % 10) for at in range(count)])
