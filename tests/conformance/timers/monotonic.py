"""Clocks that never jump back"""
import time

from case import case


@case
def monotonic():
    clocks = [time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC_RAW, 6]
    last = {clock: time.clock_gettime_ns(clock) for clock in clocks}

    def change():
        for clock in clocks:
            now = time.clock_gettime_ns(clock)
            assert now >= last[clock], f"clock {clock} went back by {last[clock] - now} ns"
            last[clock] = now

    yield change
    change()
