"""A session with a terminal: controlling, foreground group, a background job that stopped when it read"""
import fcntl
import os
import signal
import termios
import time

from case import case, fork, same, scratch, until, forever


def state(pid):
    return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()


@case
def session():
    master, slave = os.openpty()
    report = os.pipe()

    def shell():
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        own = os.open("/dev/tty", os.O_RDWR)
        os.close(slave)
        os.close(master)

        def job():
            os.setpgid(0, 0)
            while True:
                os.write(report[1], b"job:" + os.read(own, 99))

        child = fork(job)
        os.write(report[1], b"%d\n" % child)
        os.waitpid(child, os.WUNTRACED)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.write(report[1], b"stopped")
        # Asked to bring the job to the foreground.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        os.write(report[1], b"!")
        signal.sigwait({signal.SIGUSR1})
        os.tcsetpgrp(own, child)
        os.kill(-child, signal.SIGCONT)
        forever()

    leader = fork(shell)
    text = b""
    while not text.endswith(b"!"):
        text += os.read(report[0], 99)
    job = int(text.split(b"\n")[0])
    look = lambda: [(state(pid)[0],) + tuple(state(pid)[2:6]) for pid in (leader, job)]
    until("the shell waits", lambda: look()[0][0] == "S")
    before = look()
    same("stopped", before[1][0], "T")
    yield
    # Let go by its tracer, what is stopped wakes up to stop again.
    until(f"state, group, session, terminal, foreground as {before}", lambda: look() == before)
    os.kill(leader, signal.SIGUSR1)
    until("the foreground", lambda: state(job)[5] == str(job))
    os.write(master, b"typed\n")
    same("the job", os.read(report[0], 99), b"job:typed\n")
    os.write(master, b"\x03")
    until("the job is interrupted", lambda: state(job)[0] == "Z")
    os.close(slave)
    os.close(master)
    same("hung up", os.waitpid(leader, 0)[1], signal.SIGHUP)
