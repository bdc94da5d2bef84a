"""Pidfds of threads (PIDFD_THREAD): of one that ends, of the first one, and in a thread with a descriptor table of its own"""
import os
import select
import threading

from case import Asked, case, same, syscall

PIDFD_OPEN, PIDFD_THREAD, UNSHARE, CLONE_FILES = 434, 0o200, 272, 0x400


def lines(fd):
    with open(f"/proc/thread-self/fdinfo/{fd}") as file:
        found = dict(line.split(":", 1) for line in file)
    return int(found["Pid"]), int(found["flags"], 8) & PIDFD_THREAD


def ready(fd):
    return select.select([fd], [], [], 0)[0] == [fd]


@case
def pidfd_thread():
    go, tids, fds = threading.Event(), [], []

    def work():
        tids.append(threading.get_native_id())
        go.wait()

    def leave():
        syscall(UNSHARE, CLONE_FILES)
        fds.append(syscall(PIDFD_OPEN, threading.get_native_id(), PIDFD_THREAD))
        return threading.get_native_id()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while not tids:
        pass
    other = Asked()
    apart = other.ask(leave)
    fd, first = (syscall(PIDFD_OPEN, tid, PIDFD_THREAD) for tid in (tids[0], os.getpid()))
    plain = os.pidfd_open(os.getpid())
    wanted = {fd: (tids[0], PIDFD_THREAD), first: (os.getpid(), PIDFD_THREAD), plain: (os.getpid(), 0)}

    def all_of_them():
        return {fd: lines(fd) for fd in wanted}, other.ask(lambda: lines(fds[0]))

    same("before", all_of_them(), (wanted, (apart, PIDFD_THREAD)))
    yield
    same("whom they name", all_of_them(), (wanted, (apart, PIDFD_THREAD)))
    same("they run", [ready(fd) for fd in wanted] + [other.ask(lambda: ready(fds[0]))], [False] * 4)
    go.set()
    thread.join()
    same("it has ended", select.select([fd], [], [], 10)[0], [fd])
    same("the first one has not", (ready(first), ready(plain)), (False, False))
