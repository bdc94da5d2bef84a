"""A directory of which half was read: the rest comes, nothing twice, while files come and go"""
import ctypes
import os
import struct

from case import case, same, scratch, syscall

GETDENTS64, MANY = 217, 400


def some(fd, room):
    buffer = ctypes.create_string_buffer(room)
    length, at, names = syscall(GETDENTS64, fd, ctypes.addressof(buffer), room), 0, []
    while at < length:
        size = struct.unpack_from("H", buffer, at + 16)[0]
        names.append(buffer.raw[at + 19 : at + size].split(b"\0")[0].decode())
        at += size
    return names


@case
def directory_half_read():
    os.mkdir(scratch("many"))
    for number in range(MANY):
        open(scratch(f"many/file-{number}"), "w").close()
    fd = os.open(scratch("many"), os.O_RDONLY | os.O_DIRECTORY)
    seen = []
    while len(seen) < MANY // 2:
        seen += some(fd, 1000)
    turn = [0]

    def change():
        turn[0] += 1
        open(scratch(f"many/new-{turn[0] % 3}"), "w").close()
        os.path.exists(scratch(f"many/new-{(turn[0] + 1) % 3}")) and os.unlink(scratch(f"many/new-{(turn[0] + 1) % 3}"))

    yield change
    while True:
        names = some(fd, 1000)
        if not names:
            break
        seen += names
    files = sorted(name for name in seen if name.startswith("file-"))
    same("files", files, sorted(f"file-{number}" for number in range(MANY)))
