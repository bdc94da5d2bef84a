"""A child that waits for a message, in a queue that is empty"""
# refused-here: host: System V
import ctypes
import os
import struct

from case import case, fork, same, status, syscall, until


@case
def messages_waiting():
    identifier = syscall(68, 0, 0o1600)

    def child():
        message = ctypes.create_string_buffer(64)
        length = syscall(70, identifier, ctypes.addressof(message), 50, 5, 0)
        os._exit(7 if message.raw[8 : 8 + length] == b"for you" else 1)

    try:
        # It was used once.
        message = ctypes.create_string_buffer(struct.pack("q", 1))
        syscall(69, identifier, ctypes.addressof(message), 0, 0)
        syscall(70, identifier, ctypes.addressof(message), 0, 1, 0)
        pid = fork(child)
        until("it waits", lambda: status("State", pid).startswith("S"))
        yield
        same("it waits", os.waitpid(pid, os.WNOHANG), (0, 0))
        message = ctypes.create_string_buffer(struct.pack("q", 5) + b"for you")
        syscall(69, identifier, ctypes.addressof(message), 7, 0)
        same("end", os.waitpid(pid, 0)[1] >> 8, 7)
    finally:
        syscall(71, identifier, 0, 0)
