"""The values that waiting signals carry (sigqueue)"""
import ctypes
import os
import signal
import struct

from case import case, libc, same, syscall


@case
def values():
    number = signal.SIGRTMIN + 5
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    sent = [0x1122334455667788, 5, 2**63 + 1]
    for value in sent:
        block = ctypes.create_string_buffer(struct.pack("=iiiiiiQ", number, 0, -1, 0, os.getpid(), 0, value), 128)
        syscall(129, os.getpid(), number, ctypes.addressof(block))
    yield
    found = []
    for _ in sent:
        block = ctypes.create_string_buffer(128)
        mask = ctypes.c_uint64(1 << number - 1)
        # rt_sigtimedwait
        libc.syscall(128, ctypes.byref(mask), block, ctypes.create_string_buffer(16), ctypes.c_long(8))
        found.append(struct.unpack_from("=Q", block.raw, 24)[0])
    same("values", found, sent)
