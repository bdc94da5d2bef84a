"""A timer that runs out after the move, and periodic ones that go on"""
import os
import signal
import time

from case import case, same


@case
def alarm_fires():
    counts = {signal.SIGALRM: 0, signal.SIGPROF: 0}

    def handler(number, _frame):
        counts[number] += 1

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    yield
    before = counts[signal.SIGALRM]
    end = time.monotonic() + 10
    while counts[signal.SIGALRM] < before + 5 and time.monotonic() < end:
        time.sleep(0.001)
    assert counts[signal.SIGALRM] >= before + 5, f"it fires no more: {counts[signal.SIGALRM] - before}"
    assert os.getpid()
