"""Capability sets: effective, permitted, inheritable, bounding, ambient"""
from case import case, prctl, same, status, syscall
import ctypes
import struct

NAMES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
CAP_CHOWN, CAP_NET_BIND_SERVICE, CAP_SYS_CHROOT, CAP_MKNOD = 0, 10, 18, 27


@case
def capabilities():
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    permitted = int(status("CapPrm"), 16)
    effective = permitted & ~(1 << CAP_MKNOD)
    inheritable = permitted & (1 << CAP_NET_BIND_SERVICE | 1 << CAP_CHOWN)
    prctl(24, CAP_SYS_CHROOT)
    words = [(value >> shift & 0xFFFFFFFF) for shift in (0, 32) for value in (effective, permitted, inheritable)]
    data = ctypes.create_string_buffer(struct.pack("=6I", *words))
    syscall(126, ctypes.addressof(header), ctypes.addressof(data))
    # PR_CAP_AMBIENT_RAISE
    prctl(47, 2, CAP_NET_BIND_SERVICE)
    wanted = {name: status(name) for name in NAMES}
    assert int(wanted["CapAmb"], 16) == 1 << CAP_NET_BIND_SERVICE
    assert not int(wanted["CapBnd"], 16) >> CAP_SYS_CHROOT & 1
    yield
    same("sets", {name: status(name) for name in NAMES}, wanted)
