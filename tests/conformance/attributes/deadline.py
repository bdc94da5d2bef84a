"""Deadline scheduling: runtime, deadline, period"""
# not: move: a container has no CAP_SYS_NICE
import os
import struct
import ctypes
import threading

from case import case, same, syscall

SCHED_SETATTR, SCHED_GETATTR, SCHED_DEADLINE = 314, 315, 6


@case
def deadline():
    tid, done, set_ = [], threading.Event(), threading.Event()
    wanted = (SCHED_DEADLINE, 0, 0, 0, 2_000_000, 40_000_000, 50_000_000)

    def thread():
        attr = ctypes.create_string_buffer(struct.pack("=IIQiIQQQ", 48, *wanted), 48)
        syscall(SCHED_SETATTR, 0, ctypes.addressof(attr), 0)
        tid.append(threading.get_native_id())
        set_.set()
        done.wait()

    threading.Thread(target=thread, daemon=True).start()
    assert set_.wait(5), "no deadline policy"
    yield
    attr = ctypes.create_string_buffer(48)
    syscall(SCHED_GETATTR, tid[0], ctypes.addressof(attr), 48, 0)
    same("attributes", struct.unpack("=IIQiIQQQ", attr.raw)[1:], wanted)
