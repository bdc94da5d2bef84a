"""Descriptors of processes (pidfd): itself, a child, a sibling, one that does not block"""
import os
import select
import signal

from case import case, fork, forever, same


@case
def pidfd():
    first, second = fork(forever), fork(forever)
    fds = {pid: os.pidfd_open(pid) for pid in (os.getpid(), first, second)}
    quiet = os.pidfd_open(first, os.O_NONBLOCK)
    sets = select.epoll()
    sets.register(fds[second], select.EPOLLIN)
    yield
    for pid, fd in fds.items():
        line = [line for line in open(f"/proc/self/fdinfo/{fd}") if line.startswith("Pid:")]
        same("process", line, [f"Pid:\t{pid}\n"])
    same("blocking", (os.get_blocking(quiet), os.get_blocking(fds[first])), (False, True))
    same("all run", (select.select(list(fds.values()), [], [], 0)[0], sets.poll(0)), ([], []))
    signal.pidfd_send_signal(fds[second], signal.SIGKILL)
    same("ended", sets.poll(10), [(fds[second], select.EPOLLIN)])
    same("waited for", os.waitid(os.P_PIDFD, fds[second], os.WEXITED).si_status, signal.SIGKILL)
