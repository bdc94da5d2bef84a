"""Children that have ended and were not waited for: with a code, by a signal, by one that dumps core"""
import os
import resource
import signal

from case import case, forever, fork, same, status, until


@case
def zombies():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pids = [fork(lambda: os._exit(37)), fork(forever), fork(lambda: os.kill(os.getpid(), signal.SIGABRT))]
    os.kill(pids[1], signal.SIGTERM)
    for pid in pids:
        until("its end", lambda: status("State", pid).startswith("Z"))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    yield
    same("state", [status("State", pid)[0] for pid in pids], ["Z"] * 3)
    ends = [os.waitpid(pid, 0)[1] for pid in pids]
    same("ends", ends, [37 << 8, int(signal.SIGTERM), int(signal.SIGABRT)])
