"""Children that are stopped, which their parent has not seen yet, and whose parent is stopped itself"""
import os
import signal

from case import case, forever, fork, same, scratch, status, until


@case
def stopped_unseen():
    def parent():
        os.setpgid(0, 0)
        child = fork(forever)
        os.kill(child, signal.SIGSTOP)
        until("it stops", lambda: status("State", child).startswith("T"))
        with open(scratch("child"), "w") as file:
            file.write(str(child))
        os.kill(os.getpid(), signal.SIGTTIN)
        found = os.waitpid(child, os.WUNTRACED)
        os._exit(0 if found == (child, signal.SIGSTOP << 8 | 0x7F) else 1)

    pid = fork(parent)
    until("it stops", lambda: status("State", pid).startswith("T"))
    yield
    with open(scratch("child")) as file:
        same("child", status("State", int(file.read()))[0], "T")
    same("seen", os.waitpid(pid, os.WUNTRACED), (pid, signal.SIGTTIN << 8 | 0x7F))
    os.kill(pid, signal.SIGCONT)
    same("end", os.waitpid(pid, 0), (pid, 0))
