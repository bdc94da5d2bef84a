"""A child that is stopped, which its parent has not seen yet"""
import os
import signal

from case import case, forever, fork, same, status, until


@case
def stopped():
    pid = fork(forever)
    os.kill(pid, signal.SIGSTOP)
    until("it stops", lambda: status("State", pid).startswith("T"))
    yield
    same("state", status("State", pid)[0], "T")
    same("not seen yet", os.waitpid(pid, os.WUNTRACED | os.WNOHANG), (pid, signal.SIGSTOP << 8 | 0x7F))
    same("seen", os.waitpid(pid, os.WUNTRACED | os.WNOHANG), (0, 0))
    os.kill(pid, signal.SIGCONT)
    until("it goes on", lambda: status("State", pid).startswith("S"))
