"""Names of threads"""
import os
import threading

from case import case, prctl, read, same
import ctypes


@case
def names():
    tids, done, set_ = {}, threading.Event(), threading.Event()

    def thread(name):
        prctl(15, ctypes.addressof(name))
        tids[threading.get_native_id()] = name.value.decode()
        if len(tids) == 2:
            set_.set()
        done.wait()

    for name in (b"one (two) 3", b"a\\b\tc"):
        threading.Thread(target=thread, args=(ctypes.create_string_buffer(name),), daemon=True).start()
    set_.wait()
    first = [0]

    def change():
        first[0] += 1
        name = ctypes.create_string_buffer(b"main-%d" % (first[0] % 1000))
        prctl(15, ctypes.addressof(name))

    change()
    yield change
    same("of the first thread", read("/proc/self/comm"), f"main-{first[0] % 1000}\n")
    for tid, name in tids.items():
        same("of a thread", read(f"/proc/self/task/{tid}/comm"), name + "\n")
