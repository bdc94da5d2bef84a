"""Processes that sleep in one system call each. A signal with a handler ends every one of them with EINTR.

Arguments: the log. Each process writes "asleep NAME PID" before the call, "NAME VALUE ERRNO SIGNALS" after it.
"""
import ctypes
import errno
import os
import signal
import struct
import sys

os.closerange(3, 1024)
log = open(sys.argv[1], "a", buffering=1)
libc = ctypes.CDLL(None, use_errno=True)
long = struct.pack("<2q", 3600, 0)
reader, _writer = os.pipe()
epoll = libc.epoll_create1(0)
word = ctypes.c_int(0)
semaphore = libc.semget(0, 1, 0o1600)
libc.semctl(semaphore, 0, 16, 0)
CALLS = {
    "pause": lambda: libc.pause(),
    "nanosleep": lambda: libc.nanosleep(long, None),
    "clock_nanosleep": lambda: libc.syscall(230, 1, 0, long, None),
    "poll": lambda: libc.poll(struct.pack("<ihh", reader, 1, 0), 1, 3_600_000),
    "ppoll": lambda: libc.ppoll(struct.pack("<ihh", reader, 1, 0), 1, long, None),
    "epoll_wait": lambda: libc.epoll_wait(epoll, ctypes.create_string_buffer(64), 1, -1),
    "epoll_timed": lambda: libc.epoll_wait(epoll, ctypes.create_string_buffer(64), 1, 3_600_000),
    "select": lambda: libc.select(0, None, None, None, ctypes.create_string_buffer(long)),
    "futex": lambda: libc.syscall(202, ctypes.byref(word), 0, 0, long, None, 0),
    "read": lambda: libc.read(reader, ctypes.create_string_buffer(1), 1),
    "semop": lambda: libc.semop(semaphore, struct.pack("<Hhh", 0, -1, 0), 1),
    "sigsuspend": lambda: libc.sigsuspend(bytes(128)),
}
seen = []
# ctypes runs no handler of Python before the call has returned; without SA_RESTART every call here ends.
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
signal.siginterrupt(signal.SIGUSR1, True)
for name, call in CALLS.items():
    if os.fork() == 0:
        log.write(f"asleep {name} {os.getpid()}\n")
        value = call()
        number = ctypes.get_errno()
        log.write(f"{name} {value} {errno.errorcode.get(number, number)} {len(seen)}\n")
        os._exit(0)
for _ in CALLS:
    while True:
        try:
            os.wait()
            break
        except InterruptedError:
            pass
libc.semctl(semaphore, 0, 0)
