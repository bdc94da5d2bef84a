"""A time slice of its own in the fair class of the scheduler"""
import ctypes
import struct

from case import case, same, syscall

SCHED_SETATTR, SCHED_GETATTR = 314, 315
ATTR = "=IIQiIQQQ"


def get():
    attr = ctypes.create_string_buffer(48)
    syscall(SCHED_GETATTR, 0, ctypes.addressof(attr), 48, 0)
    return struct.unpack(ATTR, attr.raw)[1:]


@case
def slice():
    wanted = (0, 0, 0, 0, 12_000_000, 0, 0)
    attr = ctypes.create_string_buffer(struct.pack(ATTR, 48, *wanted), 48)
    syscall(SCHED_SETATTR, 0, ctypes.addressof(attr), 0)
    set_ = get()
    yield
    same("attributes", get(), set_)
