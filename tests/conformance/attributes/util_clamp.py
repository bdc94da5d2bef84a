"""Utilisation clamps of a thread (uclamp)"""
import ctypes
import struct

from case import case, same, syscall

SCHED_SETATTR, SCHED_GETATTR = 314, 315
KEEP_POLICY, KEEP_PARAMS, CLAMP_MIN, CLAMP_MAX = 0x08, 0x10, 0x20, 0x40


def get():
    attr = ctypes.create_string_buffer(56)
    syscall(SCHED_GETATTR, 0, ctypes.addressof(attr), 56, 0)
    return struct.unpack("=IIQiIQQQII", attr.raw)[8:]


@case
def util_clamp():
    flags = KEEP_POLICY | KEEP_PARAMS | CLAMP_MIN | CLAMP_MAX
    attr = ctypes.create_string_buffer(struct.pack("=IIQiIQQQII", 56, 0, flags, 0, 0, 0, 0, 0, 100, 900), 56)
    try:
        syscall(SCHED_SETATTR, 0, ctypes.addressof(attr), 0)
    except OSError:
        # A kernel without them: there is nothing to lose.
        yield
        return
    yield
    same("clamps", get(), (100, 900))
