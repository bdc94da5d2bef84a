"""A child that is stopped, which its parent has seen"""
import os
import signal

from case import case, forever, fork, same, status, until


@case
def stopped_seen():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = fork(forever)
    # Not in an orphaned group, which SIGTSTP does not stop.
    os.setpgid(pid, pid)
    os.kill(pid, signal.SIGSTOP)
    until("it stops", lambda: status("State", pid).startswith("T"))
    same("seen", os.waitpid(pid, os.WUNTRACED)[0], pid)
    signal.sigwait({signal.SIGCHLD})
    yield
    same("signals that wait", signal.SIGCHLD in signal.sigpending(), False)
    same("state", status("State", pid)[0], "T")
    same("seen again", os.waitpid(pid, os.WUNTRACED | os.WNOHANG), (0, 0))
    os.kill(pid, signal.SIGCONT)
    same("goes on", os.waitpid(pid, os.WCONTINUED), (pid, 0xFFFF))
    os.kill(pid, signal.SIGTSTP)
    same("stops again", os.waitpid(pid, os.WUNTRACED), (pid, signal.SIGTSTP << 8 | 0x7F))
