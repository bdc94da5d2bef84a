"""A thread that waits in open(2) of a fifo for the other side"""
import os
import threading

from case import case, same, scratch


@case
def fifo_open_waits():
    os.mkfifo(scratch("fifo"))
    found = []
    thread = threading.Thread(target=lambda: found.append(os.read(os.open(scratch("fifo"), os.O_RDONLY), 9)), daemon=True)
    thread.start()
    yield
    same("before", found, [])
    writer = os.open(scratch("fifo"), os.O_WRONLY)
    os.write(writer, b"x")
    thread.join(10)
    same("read", found, [b"x"])
