"""A POSIX lock of a process that has ended: another one that shared its descriptor table still holds it"""
# refused: which has ended
import fcntl
import os

from case import case, clone, fork, same, scratch


@case
def posix_taker_ended():
    fd = os.open(scratch("file"), os.O_CREAT | os.O_RDWR)
    # CLONE_FILES
    taker = clone(0x400, lambda: fcntl.lockf(fd, fcntl.LOCK_EX))
    os.waitpid(taker, 0)

    def other():
        with open(scratch("file"), "r+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os._exit(11)

    def tried():
        return os.waitstatus_to_exitcode(os.waitpid(fork(other), 0)[1])

    same("before", tried(), 11)
    yield
    same("held", tried(), 11)
