"""Children that end one after the other while they are copied and are waited for only afterwards"""
import os

from case import case, fork, same, until

CHILDREN = 64


@case
def ending():
    pipes = []
    pids = []
    for index in range(CHILDREN):
        asked, ask = os.pipe()

        def child():
            os.read(asked, 1)
            os._exit(index + 1)

        pids.append(fork(child))
        os.close(asked)
        pipes.append(ask)
    count = [0]

    def change():
        count[0] += 1
        if count[0] % 8 == 0 and count[0] // 8 <= CHILDREN:
            os.write(pipes[count[0] // 8 - 1], b"x")

    yield change
    while count[0] // 8 < CHILDREN:
        change()
    ended = {}

    def reap():
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ended[pid] = os.waitstatus_to_exitcode(status)
        return len(ended) == CHILDREN

    until("all children have ended", reap)
    same("what they ended with", [ended[pid] for pid in pids], list(range(1, CHILDREN + 1)))
