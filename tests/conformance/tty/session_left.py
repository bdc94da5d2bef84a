"""A terminal in a session of which no process has it open, and /dev/tty"""
import fcntl
import os
import signal
import termios

from case import case, fork, same, until


@case
def session_left():
    master, slave = os.openpty()
    report = os.pipe()

    def leader():
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        os.close(slave)
        os.close(master)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        os.write(report[1], b"x")
        signal.sigwait({signal.SIGUSR1})
        fd = os.open("/dev/tty", os.O_RDWR)
        os.write(fd, b"through /dev/tty")
        os.close(fd)

    child = fork(leader)
    os.read(report[0], 1)
    yield
    os.kill(child, signal.SIGUSR1)
    same("output", os.read(master, 99), b"through /dev/tty")
    same("ended", os.waitpid(child, 0)[1], 0)
