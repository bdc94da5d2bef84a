"""Signals that wait and that are ignored by default: SIGWINCH, SIGURG, SIGCHLD"""
import os
import signal

from case import case, same

WAITING = {signal.SIGWINCH, signal.SIGURG, signal.SIGCHLD}


@case
def ignored_pending():
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITING)
    waiting = {signal.SIGWINCH, signal.SIGURG}
    for number in waiting:
        os.kill(os.getpid(), number)

    def change():
        """Each is taken, and sent again."""
        for number in waiting:
            same("taken", signal.sigtimedwait({number}, 0).si_signo, number)
            os.kill(os.getpid(), number)

    yield change
    same("what waits", signal.sigpending() & WAITING, waiting)
