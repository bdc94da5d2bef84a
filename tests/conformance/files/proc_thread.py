"""Open files of /proc that belong to a thread"""
# refused: belongs to a thread
import os
import threading

from case import case, same


@case
def proc_thread():
    end = threading.Event()
    thread = threading.Thread(target=end.wait, daemon=True)
    thread.start()
    fd = os.open(f"/proc/self/task/{thread.native_id}/status", os.O_RDONLY)
    yield
    assert b"Pid:\t%d\n" % thread.native_id in os.read(fd, 4000)
    end.set()
    thread.join(10)
    same("ended", thread.is_alive(), False)
