"""Seccomp filters of all threads (TSYNC), one over the other"""
import ctypes
import os
import struct
import threading

from case import case, prctl, same, status, syscall

SECCOMP = 317
GETPRIORITY, SYNC = 140, 162


def refuse(number, error):
    """Lets all calls pass but one, which fails with the error."""
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
    return program, ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(code), ctypes.addressof(program)))


def error_of(number):
    try:
        syscall(number, 0, 0)
    except OSError as error:
        return error.errno
    return 0


@case
def seccomp_filter():
    found, go, started = [], threading.Event(), threading.Event()

    def thread():
        started.set()
        go.wait()
        found.append(error_of(GETPRIORITY))

    worker = threading.Thread(target=thread, daemon=True)
    worker.start()
    started.wait()
    prctl(38, 1)
    for number, error in ((GETPRIORITY, 77), (SYNC, 78)):
        program, wrapped = refuse(number, error)
        # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
        syscall(SECCOMP, 1, 1, ctypes.addressof(wrapped))
    before = status("Seccomp_filters")
    yield
    go.set()
    worker.join()
    same("errors", (error_of(GETPRIORITY), error_of(SYNC), found), (77, 78, [77]))
    same("number of filters", (status("Seccomp"), status("Seccomp_filters")), ("2", before))
