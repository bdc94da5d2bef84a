"""POSIX locks: read and write, ranges, to the end, beyond the end, of two processes"""
import fcntl
import os

from case import case, fork, forever, same, scratch, until

RANGES = ((fcntl.LOCK_EX, 0, 10), (fcntl.LOCK_SH, 10, 5), (fcntl.LOCK_EX, 100, 1), (fcntl.LOCK_SH, 2**40, 7), (fcntl.LOCK_EX, 2**50, 0))


def lines(pids):
    found = []
    for line in open("/proc/locks"):
        words = line.split()
        if words[1] == "POSIX" and int(words[4]) in pids:
            found.append((words[3], int(words[4]), words[6], words[7]))
    return sorted(found)


@case
def posix():
    fd = os.open(scratch("lock"), os.O_CREAT | os.O_RDWR)
    for how, start, length in RANGES:
        fcntl.lockf(fd, how, length, start)

    def work():
        own = os.open(scratch("lock"), os.O_RDWR)
        fcntl.lockf(own, fcntl.LOCK_SH, 3, 12)
        fcntl.lockf(own, fcntl.LOCK_EX, 20, 50)
        open(scratch("done"), "w").close()
        forever()

    child = fork(work)
    until("the child", lambda: os.path.exists(scratch("done")))
    pids = (os.getpid(), child)
    before = lines(pids)
    same("locks before", len(before), 7)
    yield
    same("locks", lines(pids), before)
    os.close(os.open(scratch("lock"), os.O_RDONLY))
    same("after a close", lines(pids), [line for line in before if line[1] == child])
