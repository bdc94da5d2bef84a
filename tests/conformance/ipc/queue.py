"""POSIX message queues without messages: open ones, one that nobody has open, and two that have lost their names"""
# refused-here: host: message queue
import ctypes
import errno
import os
import struct

from case import case, fork, same, syscall

OPEN, UNLINK, SEND, RECEIVE, GETSETATTR = 240, 241, 242, 243, 245
MADE = os.O_CREAT | os.O_EXCL


def text(name):
    return ctypes.create_string_buffer(name.encode())


def make(name, flags, mode, capacity, size):
    return syscall(OPEN, text(name), flags, mode, struct.pack("8q", 0, capacity, size, 0, 0, 0, 0, 0))


def attributes(fd):
    found = ctypes.create_string_buffer(64)
    syscall(GETSETATTR, fd, 0, ctypes.addressof(found))
    return struct.unpack_from("4q", found)


def send(fd, what, priority):
    syscall(SEND, fd, what, len(what), priority, 0)


def receive(fd, size):
    found, priority = ctypes.create_string_buffer(size), ctypes.c_uint()
    length = syscall(RECEIVE, fd, ctypes.addressof(found), size, ctypes.addressof(priority), 0)
    return found.raw[:length], priority.value


def shape(fd):
    about = os.fstat(fd)
    return about.st_mode, about.st_uid, about.st_gid, about.st_nlink


@case
def queue():
    base = f"gantry-{os.getpid()}"
    both = make(base, MADE | os.O_RDWR | os.O_NONBLOCK, 0o600, 5, 100)
    os.fchmod(both, 0o642)
    os.fchown(both, 5, 7)
    reads = syscall(OPEN, text(base), os.O_RDONLY, 0, 0)
    writes = syscall(OPEN, text(base), os.O_WRONLY | os.O_NONBLOCK, 0, 0)
    alone = f"{base}-alone"
    os.close(make(alone, MADE | os.O_RDWR, 0o600, 3, 11))
    lost = []
    for size in (20, 30):
        # Two of the same name, one after the other.
        lost.append(make(f"{base}-lost", MADE | os.O_RDWR, 0o600, 2, size))
        syscall(UNLINK, text(f"{base}-lost"))
    turn = [0]
    names = [base, alone]

    def child():
        assert receive(lost[0], 20) == (b"for you", 3)
        send(lost[1], b"and back", 4)

    def change():
        turn[0] += 1
        send(both, b"x", 1)
        same("on its way", receive(reads, 100), (b"x", 1))
        os.fchmod(both, 0o600 + turn[0] % 64)
        name = f"{base}-{turn[0]}"
        os.close(make(name, MADE | os.O_RDWR, 0o600, 1 + turn[0] % 5, 10))
        names.append(name)
        if len(names) > 4:
            syscall(UNLINK, text(names.pop(2)))

    change()
    shapes = lambda: [shape(fd) for fd in (both, reads, writes, *lost)]
    try:
        yield change
        same("mode", os.fstat(both).st_mode & 0o7777, 0o600 + turn[0] % 64)
        same("owner", shape(both)[1:], (5, 7, 1))
        same("links", [shape(fd)[3] for fd in lost], [0, 0])
        same("attributes", [attributes(fd) for fd in (both, reads, writes, *lost)],
             [(os.O_NONBLOCK, 5, 100, 0), (0, 5, 100, 0), (os.O_NONBLOCK, 5, 100, 0), (0, 2, 20, 0), (0, 2, 30, 0)])
        for number in range(5):
            send(writes, b"%d" % number, number % 2)
        try:
            send(writes, b"too many", 0)
            assert False, "there is room"
        except OSError as error:
            same("error", error.errno, errno.EAGAIN)
        same("messages", [receive(reads, 100)[0] for _ in range(5)], [b"1", b"3", b"0", b"2", b"4"])
        pid = fork(child)
        send(lost[0], b"for you", 3)
        same("answer", receive(lost[1], 30), (b"and back", 4))
        same("child", os.waitpid(pid, 0)[1], 0)
        same("names", [os.close(syscall(OPEN, text(name), os.O_RDWR, 0, 0)) for name in names], [None] * len(names))
        fd = syscall(OPEN, text(alone), os.O_RDWR, 0, 0)
        same("alone", attributes(fd), (0, 3, 11, 0))
        for name in (f"{base}-lost", f"{base}-none"):
            try:
                syscall(OPEN, text(name), os.O_RDWR, 0, 0)
                assert False, name
            except OSError as error:
                same("error", error.errno, errno.ENOENT)
    finally:
        for name in names:
            syscall(UNLINK, text(name))
