"""I/O class and priority of a process and a thread of it"""
import threading

from case import case, same, syscall

IOPRIO_SET, IOPRIO_GET = 251, 252


@case
def io_priority():
    tid, done, set_ = [], threading.Event(), threading.Event()

    def thread():
        tid.append(threading.get_native_id())
        syscall(IOPRIO_SET, 1, 0, 3 << 13)
        set_.set()
        done.wait()

    syscall(IOPRIO_SET, 1, 0, 2 << 13 | 6)
    threading.Thread(target=thread, daemon=True).start()
    set_.wait()
    yield
    same("best effort 6", syscall(IOPRIO_GET, 1, 0), 2 << 13 | 6)
    same("idle", syscall(IOPRIO_GET, 1, tid[0]), 3 << 13)
