"""A Landlock domain of one thread among others: it may bind no port"""
# refused: Landlock
import ctypes
import os
import socket
import struct
import threading

from case import case, prctl, same, syscall

CREATE_RULESET, RESTRICT_SELF = 444, 446


@case
def landlock_thread():
    found, go, ready = [], threading.Event(), threading.Event()

    def thread():
        attr = ctypes.create_string_buffer(struct.pack("=QQ", 0, 1))
        # LANDLOCK_ACCESS_NET_BIND_TCP alone.
        ruleset = syscall(CREATE_RULESET, ctypes.addressof(attr), 16, 0)
        prctl(38, 1)
        syscall(RESTRICT_SELF, ruleset, 0)
        os.close(ruleset)
        ready.set()
        go.wait()
        try:
            socket.socket().bind(("127.0.0.1", 0))
            found.append("bound")
        except PermissionError:
            found.append("refused")

    worker = threading.Thread(target=thread, daemon=True)
    worker.start()
    ready.wait()
    yield
    go.set()
    worker.join()
    same("bind", found, ["refused"])
