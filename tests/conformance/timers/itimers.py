"""Interval timers: real, virtual, profiling"""
import signal

from case import case, same


@case
def itimers():
    for number in (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 900.5, 33.25)
    signal.setitimer(signal.ITIMER_VIRTUAL, 800.25, 22.5)
    signal.setitimer(signal.ITIMER_PROF, 700.75, 11.125)
    yield
    for which, value, interval in ((0, 900.5, 33.25), (1, 800.25, 22.5), (2, 700.75, 11.125)):
        left, again = signal.getitimer(which)
        same("interval", again, interval)
        assert value - 120 < left <= value + 0.1, f"{left} s are left of {value}"
