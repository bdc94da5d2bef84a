"""A pidfd of a thread (PIDFD_THREAD)"""
# refused: pidfd
import os
import select
import threading

from case import case, same, syscall


@case
def pidfd_thread():
    go, tids = threading.Event(), []

    def work():
        tids.append(threading.get_native_id())
        go.wait()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while not tids:
        pass
    fd = syscall(434, tids[0], 0o200)
    yield
    same("it runs", select.select([fd], [], [], 0)[0], [])
    line = [line for line in open(f"/proc/self/fdinfo/{fd}") if line.startswith("Pid:")]
    same("thread", line, [f"Pid:\t{tids[0]}\n"])
    go.set()
    thread.join()
    same("it has ended", select.select([fd], [], [], 10)[0], [fd])
