"""Parents that wait: for any child, for a group, with waitid and no reaping"""
import os
import threading

from case import case, forever, fork, same


@case
def waiting():
    first, second = fork(forever), fork(forever)
    os.setpgid(second, second)
    found = {}

    def run(name, call):
        thread = threading.Thread(target=lambda: found.update({name: call()}), daemon=True)
        thread.start()
        return thread

    threads = [
        run("group", lambda: os.waitpid(-second, 0)),
        run("waitid", lambda: os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT).si_status),
    ]
    yield
    for pid in (first, second):
        os.kill(pid, 9)
    for thread in threads:
        thread.join(20)
    same("found", found, {"group": (second, 9), "waitid": 9})
    same("still there", os.waitpid(first, 0), (first, 9))
