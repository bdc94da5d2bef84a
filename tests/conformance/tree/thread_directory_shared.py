"""Two threads that share a working directory with each other, but not with their process"""
# refused: shares its working directory
import os
import threading

from case import case, forever, same, scratch, syscall


@case
def thread_directory_shared():
    os.makedirs(scratch("one"))
    here, ready = os.getcwd(), threading.Event()

    def one():
        syscall(272, 0x200)
        os.chdir(scratch("one"))
        threading.Thread(target=forever, daemon=True).start()
        ready.set()
        forever()

    threading.Thread(target=one, daemon=True).start()
    ready.wait()

    def places():
        return sorted(os.readlink(f"/proc/self/task/{tid}/cwd") for tid in os.listdir("/proc/self/task"))

    wanted = sorted([here, scratch("one"), scratch("one")])
    same("before", places(), wanted)
    yield
    same("directories", places(), wanted)
