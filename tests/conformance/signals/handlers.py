"""Handlers with all flags, ignored signals, masks of handlers"""
import ctypes
import struct

from case import case, libc, same

SIGSET = 8


def action(number, new=None):
    old = ctypes.create_string_buffer(32)
    result = libc.syscall(13, ctypes.c_long(number), new, old, ctypes.c_long(SIGSET))
    assert result == 0, number
    return struct.unpack("=4Q", old.raw)


@case
def handlers():
    # NOCLDSTOP, NOCLDWAIT, SIGINFO, ONSTACK, RESTART, NODEFER, RESETHAND, EXPOSE_TAGBITS, and the restorer's.
    flags = [1, 2, 4, 0x08000000, 0x10000000, 0x40000000, 0x80000000, 0x800]
    restorer = action(2)[2] or 0x1000
    for at, number in enumerate(range(34, 65)):
        mask = (at * 0x9E3779B97F4A7C15) & 0x7FFFFFFFFFFBFEFF
        flag = flags[at % 8] | 0x04000000
        handler = 1 if at % 5 == 0 else 0x1000 + at
        action(number, ctypes.create_string_buffer(struct.pack("=4Q", handler, flag, restorer, mask), 32))
    wanted = {number: action(number) for number in range(1, 65) if number not in (9, 19)}
    yield
    for number, value in wanted.items():
        same(f"signal {number}", action(number), value)
