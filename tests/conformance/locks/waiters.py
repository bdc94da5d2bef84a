"""Processes and threads that wait for a lock: flock, POSIX and of descriptions"""
import fcntl
import os
import struct
import threading

from case import case, fork, same, scratch, until


def ofd(fd, command, kind):
    fcntl.fcntl(fd, command, struct.pack("=hhiqqi4x", kind, 0, 0, 0, 10, 0))


@case
def waiters():
    held = {name: os.open(scratch(name), os.O_CREAT | os.O_RDWR) for name in ("flock", "posix", "ofd")}
    fcntl.flock(held["flock"], fcntl.LOCK_EX)
    fcntl.lockf(held["posix"], fcntl.LOCK_EX, 10, 0)
    ofd(held["ofd"], 37, fcntl.F_WRLCK)
    done, found = os.pipe(), []

    def flocks():
        fcntl.flock(os.open(scratch("flock"), os.O_RDWR), fcntl.LOCK_EX)
        found.append("flock")

    def ofds():
        ofd(os.open(scratch("ofd"), os.O_RDWR), 38, fcntl.F_RDLCK)
        found.append("ofd")

    def posixes():
        fcntl.lockf(os.open(scratch("posix"), os.O_RDWR), fcntl.LOCK_SH, 5, 5)
        os.write(done[1], b"posix")

    child = fork(posixes)
    threads = [threading.Thread(target=work, daemon=True) for work in (flocks, ofds)]
    for thread in threads:
        thread.start()
    until("the child waits", lambda: any("->" in line and f" {child} " in line for line in open("/proc/locks")))
    yield
    same("none has it", (found, os.waitpid(child, os.WNOHANG)), ([], (0, 0)))
    fcntl.flock(held["flock"], fcntl.LOCK_UN)
    fcntl.lockf(held["posix"], fcntl.LOCK_UN, 10, 0)
    ofd(held["ofd"], 37, fcntl.F_UNLCK)
    for thread in threads:
        thread.join(10)
    same("threads", sorted(found), ["flock", "ofd"])
    same("child", os.read(done[0], 9), b"posix")
