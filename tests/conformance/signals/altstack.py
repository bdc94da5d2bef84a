"""Another stack for handlers, of each thread (sigaltstack)"""
import ctypes
import mmap
import struct
import threading

from case import case, libc, same


def alt(new=None):
    old = ctypes.create_string_buffer(24)
    assert libc.syscall(131, new, old) == 0
    return struct.unpack("=QixxxxQ", old.raw)


@case
def altstack():
    stacks = [mmap.mmap(-1, 65536) for _ in range(2)]
    at = [ctypes.addressof(ctypes.c_char.from_buffer(stack)) for stack in stacks]
    go, found, set_ = threading.Event(), [], threading.Event()

    def thread():
        # SS_AUTODISARM
        alt(ctypes.create_string_buffer(struct.pack("=QIxxxxQ", at[1], 1 << 31, 65536), 24))
        set_.set()
        go.wait()
        found.append(alt())

    worker = threading.Thread(target=thread, daemon=True)
    worker.start()
    set_.wait()
    alt(ctypes.create_string_buffer(struct.pack("=QIxxxxQ", at[0], 0, 32768), 24))
    yield
    same("of the first thread", alt(), (at[0], 0, 32768))
    go.set()
    worker.join()
    same("of the other", found, [(at[1], -(1 << 31), 65536)])
