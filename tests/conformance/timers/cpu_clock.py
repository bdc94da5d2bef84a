"""Timers on the CPU clock of the process"""
import ctypes
import signal
import struct
import time

from case import case, libc, same


def make(number, first, period=0):
    event = ctypes.create_string_buffer(struct.pack("=Qiii", number, number, 0, 0), 64)
    made = ctypes.c_int()
    assert libc.syscall(222, ctypes.c_long(2), event, ctypes.byref(made)) == 0
    block = ctypes.create_string_buffer(struct.pack("=4q", period, 0, first // 10**9, first % 10**9))
    assert libc.syscall(223, ctypes.c_long(made.value), ctypes.c_long(0), block, None) == 0
    return made.value


def left(timer):
    block = ctypes.create_string_buffer(32)
    assert libc.syscall(224, ctypes.c_long(timer), block) == 0
    period, _, seconds, nanos = struct.unpack("=4q", block.raw)
    return period, seconds + nanos / 1e9


@case
def cpu_clock():
    signals = {signal.SIGRTMIN, signal.SIGRTMIN + 1}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    far = make(signal.SIGRTMIN, 5000 * 10**9, 7)
    before = left(far)[1]
    soon = make(signal.SIGRTMIN + 1, 30 * 10**9)
    yield
    period, now = left(far)
    same("period", period, 7)
    assert before - 60 < now <= before, f"{now} s are left of {before}"
    assert 0 < left(soon)[1] <= 30, "the second timer"
    same("nothing came", signal.sigpending() & signals, set())
    # It counts the time of this process, and nothing else.
    worked, start = left(far)[1], time.process_time()
    while time.process_time() - start < 0.1:
        pass
    assert 0.09 < worked - left(far)[1] < 0.5, f"{worked - left(far)[1]} s of 0.1"
    block = ctypes.create_string_buffer(struct.pack("=4q", 0, 0, 0, 10**7))
    assert libc.syscall(223, ctypes.c_long(soon), ctypes.c_long(0), block, None) == 0
    while time.process_time() - start < 0.3 and signal.SIGRTMIN + 1 not in signal.sigpending():
        pass
    same("signal", signal.sigtimedwait({signal.SIGRTMIN + 1}, 0).si_signo, signal.SIGRTMIN + 1)
