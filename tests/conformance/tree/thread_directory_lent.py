"""A thread that shares a working directory with a child, and not with its process"""
# refused: shares its working directory
import os
import signal

from case import Asked, case, clone, same, scratch, syscall

UNSHARE, CLONE_FS = 272, 0x200


@case
def thread_directory_lent():
    os.makedirs(scratch("one"))

    def leave():
        syscall(UNSHARE, CLONE_FS)
        os.chdir(scratch("one"))
        return clone(CLONE_FS, signal.pause)

    thread = Asked()
    pid = thread.ask(leave)
    yield
    thread.ask(lambda: os.chdir(scratch("")))
    same("the child's", os.readlink(f"/proc/{pid}/cwd"), scratch("").rstrip("/"))
