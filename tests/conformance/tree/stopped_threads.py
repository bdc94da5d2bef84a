"""A child with several threads that is stopped by its terminal's signal (SIGTSTP)"""
import os
import signal
import threading

from case import case, forever, fork, same, status, until


@case
def stopped_threads():
    def child():
        for _ in range(4):
            threading.Thread(target=forever, daemon=True).start()
        os.write(writer, b"x")
        forever()

    reader, writer = os.pipe()
    pid = fork(child)
    os.read(reader, 1)
    os.setpgid(pid, pid)
    os.kill(pid, signal.SIGTSTP)
    until("it stops", lambda: states(pid) == {"T"})
    yield
    same("states", states(pid), {"T"})
    same("by", os.waitpid(pid, os.WUNTRACED)[1] >> 8, int(signal.SIGTSTP))
    os.kill(pid, signal.SIGCONT)
    until("it goes on", lambda: states(pid) == {"S"})


def states(pid):
    return {status("State", f"{pid}/task/{tid}")[0] for tid in os.listdir(f"/proc/{pid}/task")}
