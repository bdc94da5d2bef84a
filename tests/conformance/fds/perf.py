"""A counter of perf_event_open"""
# refused: perf
import ctypes
import os
import struct

from case import case, same, syscall


@case
def perf():
    # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK; exclude_kernel.
    attributes = ctypes.create_string_buffer(struct.pack("=IIQQQQQ", 1, 64, 1, 0, 0, 0, 1 << 5), 128)
    fd = syscall(298, ctypes.addressof(attributes), 0, -1, -1, 0)
    yield
    same("counter", len(os.read(fd, 8)), 8)
