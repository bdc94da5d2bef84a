"""Switches of prctl: dumpable, parent-death signal, subreaper, transparent huge pages, machine checks"""
import ctypes
import os
import signal

from case import case, fork, prctl, same


def word(option):
    value = ctypes.c_int(0)
    prctl(option, ctypes.addressof(value))
    return value.value


@case
def prctls():
    (ask, asked), (answer, answered) = os.pipe(), os.pipe()

    # In a child: the program's own parent is another one after a restore.
    def work():
        prctl(1, signal.SIGUSR1)
        os.write(answered, b"set")
        os.read(ask, 1)
        os.write(answered, b"%d" % word(2))

    fork(work)
    same("first", os.read(answer, 8), b"set")
    prctl(4, 0)
    prctl(36, 1)
    prctl(41, 1)
    # PR_MCE_KILL_SET, PR_MCE_KILL_EARLY
    prctl(33, 1, 1)
    yield
    same("dumpable", prctl(3), 0)
    same("subreaper", word(37), 1)
    same("no transparent huge pages", prctl(42), 1)
    same("machine checks", prctl(34), 1)
    os.write(asked, b"?")
    same("parent-death signal", os.read(answer, 8), b"%d" % signal.SIGUSR1)
