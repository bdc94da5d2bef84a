"""Two hundred children of three generations; each answers"""
import os

from case import case, forever, fork, same


@case
def children():
    go, ask = os.pipe()
    answers, answer = os.pipe()

    def child(number, depth):
        def work():
            if depth:
                fork(child(number + 1000, depth - 1))
            os.read(go, 1)
            os.write(answer, b"%04d %d\n" % (number, os.getpid()))
            forever()

        return work

    for number in range(50):
        fork(child(number, 3))
    yield
    os.write(ask, b"x" * 200)
    found = b""
    while found.count(b"\n") < 200:
        found += os.read(answers, 65536)
    numbers = sorted(int(line.split()[0]) for line in found.splitlines())
    same("answers", numbers, sorted(number + 1000 * depth for number in range(50) for depth in range(4)))
    same("pids", len({line.split()[1] for line in found.splitlines()}), 200)
