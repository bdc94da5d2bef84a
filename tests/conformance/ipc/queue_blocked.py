"""A child that waits for a message of a POSIX queue, one that waits with epoll, and one whose time runs out"""
# refused-here: host: message queue
import ctypes
import errno
import os
import select
import struct
import time

from case import case, fork, same, status, syscall, until

OPEN, UNLINK, SEND, RECEIVE = 240, 241, 242, 243


def make(name):
    made = ctypes.create_string_buffer(name.encode())
    fd = syscall(OPEN, made, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, struct.pack("8q", 0, 4, 50, 0, 0, 0, 0, 0))
    syscall(UNLINK, made)
    return fd


def receive(fd, end=None):
    found = ctypes.create_string_buffer(50)
    limit = struct.pack("qq", int(end), int(end % 1 * 1e9)) if end else 0
    length = syscall(RECEIVE, fd, ctypes.addressof(found), 50, 0, limit)
    return found.raw[:length]


@case
def queue_blocked():
    base = f"gantry-{os.getpid()}"
    queues = [make(f"{base}-{number}") for number in range(3)]
    end = time.time() + 4

    def blocked():
        os._exit(7 if receive(queues[0]) == b"first" else 1)

    def polled():
        watch = select.epoll()
        watch.register(queues[1], select.EPOLLIN)
        found = watch.poll()
        os._exit(7 if found == [(queues[1], select.EPOLLIN)] and receive(queues[1]) == b"second" else 1)

    def timed():
        try:
            receive(queues[2], end)
            os._exit(1)
        except OSError as error:
            os._exit(7 if error.errno == errno.ETIMEDOUT and time.time() >= end else 2)

    children = [fork(work) for work in (blocked, polled, timed)]
    for pid in children:
        until("it waits", lambda: status("State", pid).startswith("S"))
    yield
    same("they wait", [os.waitpid(pid, os.WNOHANG) for pid in children[:2]], [(0, 0)] * 2)
    syscall(SEND, queues[0], b"first", 5, 0, 0)
    syscall(SEND, queues[1], b"second", 6, 0, 0)
    same("ends", [os.waitpid(pid, 0)[1] >> 8 for pid in children], [7, 7, 7])
