"""A System V message queue"""
# refused: System V
import ctypes
import struct

from case import case, same, syscall


@case
def messages():
    identifier = syscall(68, 0, 0o1600)
    try:
        message = ctypes.create_string_buffer(struct.pack("l5s", 7, b"hello"))
        syscall(69, identifier, ctypes.addressof(message), 5, 0)
        yield
        found = ctypes.create_string_buffer(64)
        same("length", syscall(70, identifier, ctypes.addressof(found), 50, 0, 0), 5)
    finally:
        # IPC_RMID
        syscall(71, identifier, 0, 0)
