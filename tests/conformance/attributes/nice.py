"""Nice values of a process and of a thread of it"""
import os
import threading

from case import case, same


@case
def nice():
    tid, done, set_ = [], threading.Event(), threading.Event()

    def thread():
        tid.append(threading.get_native_id())
        os.setpriority(os.PRIO_PROCESS, 0, 11)
        set_.set()
        done.wait()

    threading.Thread(target=thread, daemon=True).start()
    set_.wait()
    level = [3]
    os.setpriority(os.PRIO_PROCESS, os.getpid(), 3)

    def change():
        if level[0] < 9:
            level[0] += 1
            os.setpriority(os.PRIO_PROCESS, os.getpid(), level[0])

    yield change
    same("of the first thread", os.getpriority(os.PRIO_PROCESS, os.getpid()), level[0])
    same("of the other", os.getpriority(os.PRIO_PROCESS, tid[0]), 11)
