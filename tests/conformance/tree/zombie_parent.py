"""A child that has ended, with a session and a group of its own that live on in its children"""
import os

from case import case, forever, fork, prctl, same, status, until


@case
def zombie_parent():
    # PR_SET_CHILD_SUBREAPER: the orphan stays here.
    prctl(36, 1)
    reader, writer = os.pipe()

    def child():
        os.setsid()
        os.write(writer, b"%d" % fork(forever))
        os._exit(5)

    pid = fork(child)
    orphan = int(os.read(reader, 9))
    until("its end", lambda: status("State", pid).startswith("Z"))
    yield
    same("session and group", (os.getsid(orphan), os.getpgid(orphan)), (pid, pid))
    same("end", os.waitpid(pid, 0)[1], 5 << 8)
    same("session and group", (os.getsid(orphan), os.getpgid(orphan)), (pid, pid))
    os.kill(orphan, 9)
