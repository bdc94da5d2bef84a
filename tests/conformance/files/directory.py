"""A directory half read: all other names come, each once"""
import ctypes
import os

from case import case, same, scratch, syscall


def names(fd, size):
    block = ctypes.create_string_buffer(size)
    length = syscall(217, fd, ctypes.addressof(block), size)
    at, found = 0, []
    while at < length:
        step = int.from_bytes(block.raw[at + 16:at + 18], "little")
        found.append(block.raw[at + 19:at + step].split(b"\0")[0].decode())
        at += step
    return found


@case
def directory():
    os.mkdir(scratch("many"))
    for number in range(300):
        open(scratch(f"many/{number:05}"), "w").close()
    fd = os.open(scratch("many"), os.O_RDONLY | os.O_DIRECTORY)
    found = names(fd, 2048)
    yield
    while part := names(fd, 2048):
        found += part
    same("names", sorted(found), sorted([".", ".."] + [f"{number:05}" for number in range(300)]))
