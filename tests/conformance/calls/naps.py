"""Calls that sleep go on for the rest of their time, without an error: nanosleep, poll, select, futex, epoll_wait"""
import ctypes
import select
import struct
import threading
import time

from case import case, libc, same

TOTAL = 2.0


@case
def naps():
    ended = {}

    def run(name, call):
        def work():
            began = time.monotonic()
            result = call()
            ended[name] = (result, time.monotonic() - began)
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    spec = ctypes.create_string_buffer(struct.pack("=qq", int(TOTAL), 0))
    word = ctypes.c_uint32(7)
    epoll = select.epoll()
    error = lambda result: (result, ctypes.get_errno() if result == -1 else 0)
    threads = [
        run("nanosleep", lambda: error(libc.syscall(35, spec, None))),
        run("clock_nanosleep", lambda: error(libc.syscall(230, ctypes.c_long(1), ctypes.c_long(0), spec, None))),
        run("poll", lambda: error(libc.syscall(7, None, ctypes.c_long(0), ctypes.c_long(int(TOTAL * 1000))))),
        run("futex", lambda: error(libc.syscall(202, ctypes.byref(word), ctypes.c_long(128), ctypes.c_long(7), spec, None, ctypes.c_long(0)))),
        run("epoll_wait", lambda: error(libc.syscall(232, ctypes.c_long(epoll.fileno()), ctypes.create_string_buffer(64), ctypes.c_long(4), ctypes.c_long(int(TOTAL * 1000))))),
    ]
    yield
    for thread in threads:
        thread.join(30)
    for name, expected in (("nanosleep", (0, 0)), ("clock_nanosleep", (0, 0)), ("poll", (0, 0)), ("futex", (-1, 110)), ("epoll_wait", (0, 0))):
        result, took = ended[name]
        print(name, result, took, flush=True)
        print(expected)
        assert took > TOTAL - 0.05, f"{name} ended after {took} s instead of {TOTAL}"
    times = [took for _, took in ended.values()]
    assert max(times) - min(times) < 0.4, f"one has slept longer than others: {ended}"
