"""A pipe from a child to its parent that is written to while it moves"""
import os
import time

from case import case, fork, same


@case
def forked():
    reader, writer = os.pipe()

    def work():
        for number in range(10**9):
            os.write(writer, number.to_bytes(8, "little"))
            time.sleep(0.0005)

    child = fork(work)
    os.close(writer)
    next_ = [0]

    def change():
        raw = os.read(reader, 8 * 64)
        for at in range(0, len(raw), 8):
            same("number", int.from_bytes(raw[at:at + 8], "little"), next_[0])
            next_[0] += 1

    change()
    yield change
    for _ in range(20):
        change()
    os.kill(child, 9)
    os.waitpid(child, 0)
    while raw := os.read(reader, 8):
        same("number", int.from_bytes(raw, "little"), next_[0])
        next_[0] += 1
