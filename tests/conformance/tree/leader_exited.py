"""A child whose first thread has exited while another one runs"""
# refused: main thread
import os
import threading

from case import case, forever, fork, same, status, syscall, until


@case
def leader_exited():
    def child():
        threading.Thread(target=forever, daemon=True).start()
        # exit of this thread alone
        syscall(60, 0)

    pid = fork(child)
    until("its end", lambda: status("State", pid).startswith("Z"))
    yield
    same("threads", len(os.listdir(f"/proc/{pid}/task")), 2)
    os.kill(pid, 9)
    same("end", os.waitpid(pid, 0)[1], 9)
