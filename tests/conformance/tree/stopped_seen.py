"""A child that is stopped, which its parent has seen"""
# lost: seen again
import os
import signal

from case import case, forever, fork, same, status, until


@case
def stopped_seen():
    pid = fork(forever)
    os.kill(pid, signal.SIGSTOP)
    until("it stops", lambda: status("State", pid).startswith("T"))
    same("seen", os.waitpid(pid, os.WUNTRACED)[0], pid)
    yield
    same("state", status("State", pid)[0], "T")
    same("seen again", os.waitpid(pid, os.WUNTRACED | os.WNOHANG), (0, 0))
