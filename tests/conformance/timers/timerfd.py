"""Descriptors for timers: clocks, periods, expirations that were not read"""
import os
import struct
import ctypes
import time

from case import case, libc, same


def create(clock, flags):
    fd = libc.timerfd_create(clock, flags)
    assert fd >= 0
    return fd


def settime(fd, flags, value, interval):
    part = lambda ns: (ns // 10**9, ns % 10**9)
    block = ctypes.create_string_buffer(struct.pack("=4q", *part(interval), *part(value)))
    assert libc.timerfd_settime(fd, flags, block, None) == 0


def gettime(fd):
    block = ctypes.create_string_buffer(32)
    assert libc.timerfd_gettime(fd, block) == 0
    a, b, c, d = struct.unpack("=4q", block.raw)
    return c * 10**9 + d, a * 10**9 + b


@case
def timerfd():
    far = {clock: create(clock, 0o4000) for clock in (0, 1, 7)}
    for at, fd in enumerate(far.values()):
        settime(fd, 0, (700 + at) * 10**9, 3 * 10**9)
    once = create(1, 0)
    settime(once, 0, 10**6, 0)
    absolute = create(1, 0o4000)
    settime(absolute, 1, time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 400 * 10**9, 0)
    idle = create(1, 0o4000)
    yield
    for at, fd in enumerate(far.values()):
        left, interval = gettime(fd)
        same("period", interval, 3 * 10**9)
        assert (580 + at) * 10**9 < left <= (700 + at) * 10**9, left
        same("blocking", os.get_blocking(fd), False)
    same("the one that ran out", struct.unpack("=Q", os.read(once, 8))[0], 1)
    assert 280 * 10**9 < gettime(absolute)[0] <= 400 * 10**9
    same("not armed", gettime(idle), (0, 0))
