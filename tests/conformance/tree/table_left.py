"""A child of a child that shares a descriptor table with the process above both, and not with its own parent"""
# refused: shares its descriptor table
import os
import signal

from case import case, clone, same, syscall

KCMP, KCMP_FILES, CLONE_FILES, UNSHARE = 312, 2, 0x400, 272


@case
def table_left():
    reader, writer = os.pipe()

    def child():
        below = clone(CLONE_FILES, signal.pause)
        syscall(UNSHARE, CLONE_FILES)
        os.write(writer, str(below).encode())
        signal.pause()

    pid = clone(CLONE_FILES, child)
    below = int(os.read(reader, 20))

    def shared():
        return [syscall(KCMP, os.getpid(), other, KCMP_FILES, 0, 0) == 0 for other in (pid, below)]

    same("before", shared(), [False, True])
    yield
    same("shared", shared(), [False, True])
