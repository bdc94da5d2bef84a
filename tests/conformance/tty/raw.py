"""A raw terminal: bytes go through both ways as they are, a reader waits on each side"""
import os
import threading
import tty

from case import case, same


@case
def raw():
    master, slave = os.openpty()
    tty.setraw(slave)
    found = {}
    ends = {"master": master, "slave": slave}
    threads = [threading.Thread(target=lambda n=n, fd=fd: found.update({n: os.read(fd, 99)}), daemon=True) for n, fd in ends.items()]
    for thread in threads:
        thread.start()
    yield
    same("before", found, {})
    os.write(master, b"\x03\x04\r")
    os.write(slave, b"\n\x7f")
    for thread in threads:
        thread.join(10)
    same("found", found, {"slave": b"\x03\x04\r", "master": b"\n\x7f"})
