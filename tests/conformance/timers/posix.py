"""Timers of POSIX on clocks of the system: ids, periods, signals, the thread that gets them"""
import ctypes
import os
import signal
import struct
import threading

from case import case, libc, same, syscall

CREATE, SETTIME, GETTIME, GETOVERRUN = 222, 223, 224, 225


def create(clock, notify, number, value, tid=0):
    event = ctypes.create_string_buffer(struct.pack("=Qiii", value, number, notify, tid), 64)
    made = ctypes.c_int()
    assert libc.syscall(CREATE, ctypes.c_long(clock), event, ctypes.byref(made)) == 0
    return made.value


def settime(timer, value, interval):
    part = lambda ns: (ns // 10**9, ns % 10**9)
    block = ctypes.create_string_buffer(struct.pack("=4q", *part(interval), *part(value)))
    assert libc.syscall(SETTIME, ctypes.c_long(timer), ctypes.c_long(0), block, None) == 0


def gettime(timer):
    block = ctypes.create_string_buffer(32)
    assert libc.syscall(GETTIME, ctypes.c_long(timer), block) == 0
    a, b, c, d = struct.unpack("=4q", block.raw)
    return c * 10**9 + d, a * 10**9 + b


@case
def posix():
    number = signal.SIGRTMIN + 7
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    # A gap in the numbers.
    first = create(1, 1, 0, 0)
    gone = create(1, 1, 0, 0)
    syscall(226, gone)
    timers = {}
    for clock, notify in ((0, 0), (1, 0), (7, 1), (1, 4)):
        timers[create(clock, notify, number, 0x1234567800000000 + clock, threading.get_native_id())] = clock
    for at, timer in enumerate(timers):
        settime(timer, (600 + at) * 10**9, at * 10**9 + 5)
    fires = create(1, 0, number, 0xABCDEF)
    settime(fires, 5 * 10**6, 0)
    yield
    same("not armed", gettime(first), (0, 0))
    for at, timer in enumerate(timers):
        left, interval = gettime(timer)
        same("interval", interval, at * 10**9 + 5)
        assert (480 + at) * 10**9 < left <= (600 + at) * 10**9, f"timer {timer}: {left} ns are left"
    block, mask = ctypes.create_string_buffer(128), ctypes.c_uint64(1 << number - 1)
    limit = ctypes.create_string_buffer(struct.pack("=qq", 10, 0))
    same("its signal", libc.syscall(128, ctypes.byref(mask), block, limit, ctypes.c_long(8)), number)
    same("timer and value", struct.unpack_from("=iiQ", block.raw, 16), (fires, 0, 0xABCDEF))
