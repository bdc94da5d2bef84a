"""Extended attributes and access control lists of files and directories"""
import os
import struct

from case import case, same, scratch


@case
def xattrs():
    open(scratch("file"), "w").close()
    os.mkdir(scratch("dir"))
    acl = struct.pack("<I" + "HHI" * 5, 2, 1, 6, 2**32 - 1, 2, 4, 77, 4, 4, 2**32 - 1, 16, 6, 2**32 - 1, 32, 0, 2**32 - 1)
    os.setxattr(scratch("file"), "system.posix_acl_access", acl)
    os.setxattr(scratch("dir"), "user.note", b"n" * 1000)
    count = 0

    def change():
        nonlocal count
        count += 1
        os.setxattr(scratch("file"), "user.count", b"%d" % count)

    change()
    yield change
    same("access control list", os.getxattr(scratch("file"), "system.posix_acl_access"), acl)
    same("of a directory", os.getxattr(scratch("dir"), "user.note"), b"n" * 1000)
    same("changed", os.getxattr(scratch("file"), "user.count"), b"%d" % count)
