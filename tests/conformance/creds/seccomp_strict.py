"""A child in the strict mode of seccomp: it may read, write and exit, and anything else kills it"""
import ctypes
import os
import signal

from case import case, fork, libc, same, status


@case
def seccomp_strict():
    (ask, asked), (answer, answered) = os.pipe(), os.pipe()
    libc.read.argtypes = libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]

    def child():
        block = ctypes.create_string_buffer(1)
        at = ctypes.addressof(block)
        read, write, getpid = libc.read, libc.write, libc.getpid
        libc.prctl(22, 1, 0, 0, 0)
        while True:
            read(ask, at, 1)
            if block.raw == b"!":
                getpid()
            write(answered, at, 1)

    pid = fork(child)
    os.write(asked, b"a")
    same("before", os.read(answer, 1), b"a")
    yield
    same("mode", status("Seccomp", pid), "1")
    os.write(asked, b"b")
    same("after", os.read(answer, 1), b"b")
    os.write(asked, b"!")
    same("killed", os.waitpid(pid, 0), (pid, signal.SIGKILL))
