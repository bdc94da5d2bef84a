"""Real, effective, saved and file-system ids of a process and a thread, supplementary groups"""
import ctypes
import threading

from case import case, same, status, syscall

SETRESUID, SETRESGID, SETFSUID, SETFSGID, SETGROUPS = 117, 119, 122, 123, 116


@case
def ids():
    tid, done, set_ = [], threading.Event(), threading.Event()

    def thread():
        # By the bare calls: the C library would change all threads.
        groups = (ctypes.c_uint * 3)(7, 11, 4242)
        syscall(SETGROUPS, 3, ctypes.addressof(groups))
        syscall(SETRESGID, 101, 102, 103)
        syscall(SETFSGID, 104)
        syscall(SETRESUID, 201, 0, 203)
        syscall(SETFSUID, 0)
        tid.append(threading.get_native_id())
        set_.set()
        done.wait()

    threading.Thread(target=thread, daemon=True).start()
    set_.wait()
    groups = (ctypes.c_uint * 2)(5, 6)
    syscall(SETGROUPS, 2, ctypes.addressof(groups))
    yield
    same("of the first thread", (status("Uid").split(), status("Groups").split()), (["0"] * 4, ["5", "6"]))
    lines = {line.split(":")[0]: line.split()[1:] for line in open(f"/proc/self/task/{tid[0]}/status")}
    same("users of the other", lines["Uid"], ["201", "0", "203", "0"])
    same("groups of the other", lines["Gid"], ["101", "102", "103", "104"])
    same("supplementary groups of the other", lines["Groups"], ["7", "11", "4242"])
