"""A timer of the clock on the wall that is cancelled when somebody sets that clock (TFD_TIMER_CANCEL_ON_SET)"""
import ctypes
import struct
import time

from case import case, libc, read, same


@case
def cancelled():
    fd = libc.timerfd_create(0, 0)
    at = int(time.time()) + 3600
    value = ctypes.create_string_buffer(struct.pack("=qqqq", 0, 0, at, 0), 32)
    # TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET
    same("set", libc.timerfd_settime(fd, 3, value, None), 0)
    before = flags(fd)
    yield
    same("flags", flags(fd), before)
    left = ctypes.create_string_buffer(32)
    same("asked", libc.timerfd_gettime(fd, left), 0)
    same("when", abs(struct.unpack("=qqqq", left.raw)[2] + int(time.time()) - at) < 3, True)


def flags(fd):
    return [line for line in read(f"/proc/self/fdinfo/{fd}").splitlines() if line.startswith("settime flags")]
