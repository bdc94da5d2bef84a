"""A child that was stopped and goes on, which its parent has not seen yet (WCONTINUED)"""
import os
import signal

from case import case, forever, fork, same, status, until


@case
def continued():
    pid = fork(forever)
    os.kill(pid, signal.SIGSTOP)
    until("it stops", lambda: status("State", pid).startswith("T"))
    os.kill(pid, signal.SIGCONT)
    until("it goes on", lambda: status("State", pid).startswith("S"))
    yield
    same("goes on", os.waitpid(pid, os.WCONTINUED | os.WNOHANG), (pid, 0xFFFF))
