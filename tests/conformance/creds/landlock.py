"""A Landlock domain: the rights that a process took from itself"""
# refused: Landlock
import ctypes
import struct

from case import case, prctl, syscall

CREATE_RULESET, RESTRICT_SELF = 444, 446


@case
def landlock():
    # LANDLOCK_ACCESS_FS_MAKE_DIR is refused everywhere.
    attr = ctypes.create_string_buffer(struct.pack("=Q", 1 << 7))
    ruleset = syscall(CREATE_RULESET, ctypes.addressof(attr), 8, 0)
    prctl(38, 1)
    syscall(RESTRICT_SELF, ruleset, 0)
    import os
    os.close(ruleset)
    yield
    try:
        os.mkdir("forbidden")
    except PermissionError:
        return
    raise AssertionError("a directory could be made")
