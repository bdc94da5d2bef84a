"""What a core dump would hold (coredump_filter)"""
from case import case, read, same


@case
def coredump_filter():
    with open("/proc/self/coredump_filter", "w") as file:
        file.write("0x7f")
    yield
    same("filter", int(read("/proc/self/coredump_filter"), 16), 0x7F)
