"""flock shared over fork: it lives until the last of both has closed it"""
import fcntl
import os

from case import case, fork, same, scratch


@case
def flock_forked():
    fd = os.open(scratch("lock"), os.O_CREAT | os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    go = os.pipe()
    child = fork(lambda: os.read(go[0], 1))
    yield
    other = os.open(scratch("lock"), os.O_RDWR)

    def can():
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False

    os.close(fd)
    same("the child has it", can(), False)
    os.write(go[1], b"x")
    os.waitpid(child, 0)
    same("nobody has it", can(), True)
