"""A System V semaphore that is set back when the process ends (SEM_UNDO)"""
# refused: SEM_UNDO
import ctypes
import struct

from case import case, same, syscall


@case
def semaphores_undo():
    identifier = syscall(64, 0, 1, 0o1600)
    try:
        # SEM_UNDO
        operation = ctypes.create_string_buffer(struct.pack("HhH", 0, 3, 0x1000))
        syscall(65, identifier, ctypes.addressof(operation), 1)
        yield
        same("value", syscall(66, identifier, 0, 12), 3)
    finally:
        # IPC_RMID
        syscall(66, identifier, 0, 0)
