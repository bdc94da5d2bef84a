"""A full pipe with a writer that waits for room, in the middle of what it writes"""
import os
import select
import threading

from case import case, same, until


@case
def full_blocked():
    reader, writer = os.pipe()
    data = bytes(at * 7 & 255 for at in range(200_000))

    def write():
        left = data
        # A write that is stopped in the middle returns what it has written, as after SIGSTOP.
        while left:
            left = left[os.write(writer, left):]

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    until("it is full", lambda: not select.select([], [writer], [], 0)[1])
    yield
    assert thread.is_alive(), "it did not wait"
    found = b""
    while len(found) < len(data):
        found += os.read(reader, 70_000)
    thread.join(10)
    same("data", (found == data, thread.is_alive()), (True, False))
