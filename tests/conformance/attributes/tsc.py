"""The time stamp counter that may not be read (PR_SET_TSC)"""
import ctypes
import os

from case import case, fork, prctl, same

PR_GET_TSC, PR_SET_TSC, SIGSEGV = 25, 26, 2


@case
def tsc():
    (ask, asked), (answer, answered) = os.pipe(), os.pipe()

    # A process with one thread: threads of python wait with a clock, which reads the counter.
    def work():
        prctl(PR_SET_TSC, SIGSEGV)
        os.write(answered, b"set")
        os.read(ask, 1)
        word = ctypes.c_int(0)
        prctl(PR_GET_TSC, ctypes.addressof(word))
        os.write(answered, b"%d" % word.value)

    fork(work)
    same("first", os.read(answer, 8), b"set")
    yield
    os.write(asked, b"?")
    same("mode", os.read(answer, 8), b"%d" % SIGSEGV)
