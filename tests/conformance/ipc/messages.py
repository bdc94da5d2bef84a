"""A System V message queue: messages of several types in their order, and its own limit"""
# refused-here: host: System V
import ctypes
import errno
import struct

from case import case, read, same, syscall

SENT = [(7, b"hello"), (3, b""), (7, b"again"), (1 << 40, b"x" * 2000)]


@case
def messages():
    identifier = syscall(68, 0x4703, 0o1600)
    try:
        about = ctypes.create_string_buffer(128)
        # IPC_STAT, IPC_SET: msg_qbytes and the mode
        syscall(71, identifier, 2, ctypes.addressof(about))
        struct.pack_into("Q", about, 88, 2010)
        struct.pack_into("I", about, 20, 0o640)
        syscall(71, identifier, 1, ctypes.addressof(about))
        for kind, text in SENT:
            message = ctypes.create_string_buffer(struct.pack("q", kind) + text)
            syscall(69, identifier, ctypes.addressof(message), len(text), 0)

        def row():
            rows = [line.split() for line in read("/proc/sysvipc/msg").splitlines()[1:]]
            # key, perms, cbytes, qnum; uid, gid, cuid, cgid
            return [row[:1] + row[2:5] + row[7:11] for row in rows if int(row[1]) == identifier]

        before = row()
        yield
        same("queue", row(), before)
        syscall(71, identifier, 2, ctypes.addressof(about))
        same("limit", struct.unpack_from("Q", about, 88)[0], 2010)
        message = ctypes.create_string_buffer(struct.pack("q", 1) + b"x" * 10)
        try:
            # IPC_NOWAIT
            syscall(69, identifier, ctypes.addressof(message), 10, 0o4000)
            assert False, "there is room"
        except OSError as error:
            same("error", error.errno, errno.EAGAIN)
        found = []
        for kind in (0, 7, 0, 0):
            message = ctypes.create_string_buffer(4096)
            length = syscall(70, identifier, ctypes.addressof(message), 4000, kind, 0)
            found.append((struct.unpack_from("q", message)[0], message.raw[8 : 8 + length]))
        same("messages", found, [SENT[0], SENT[2], SENT[1], SENT[3]])
    finally:
        # IPC_RMID
        syscall(71, identifier, 0, 0)
