"""Resource limits that are lower than what the process has: descriptors, stack, file sizes, signals, processes"""
import mmap
import os
import resource
import signal
import threading

from case import case, fork, forever, same, scratch


@case
def limits_below_use():
    high = os.dup2(os.open("/dev/null", os.O_RDWR), 900)
    path = scratch("large")
    large = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(large, b"end", 1 << 20)
    gone = os.open(scratch("gone"), os.O_RDWR | os.O_CREAT)
    os.unlink(scratch("gone"))
    os.pwrite(gone, b"end", 1 << 20)
    memory = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:3] = b"one"
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN + 3})
    child = fork(forever)
    for _ in range(5):
        signal.pthread_kill(threading.get_ident(), signal.SIGRTMIN + 3)
    limits = {
        resource.RLIMIT_NOFILE: 20,
        resource.RLIMIT_STACK: 32 << 10,
        resource.RLIMIT_FSIZE: 1000,
        resource.RLIMIT_SIGPENDING: 2,
        resource.RLIMIT_NPROC: 1,
        resource.RLIMIT_CORE: 0,
    }
    for what, value in limits.items():
        resource.setrlimit(what, (value, value))
    yield
    same("limits", {what: resource.getrlimit(what) for what in limits}, {what: (v, v) for what, v in limits.items()})
    os.fstat(high)
    same("file", os.pread(large, 3, 1 << 20), b"end")
    same("deleted file", os.pread(gone, 3, 1 << 20), b"end")
    same("memory", memory[:3], b"one")
    same("signals", [signal.sigtimedwait([signal.SIGRTMIN + 3], 0).si_signo for _ in range(5)], [signal.SIGRTMIN + 3] * 5)
    os.kill(child, signal.SIGKILL)
    same("child", os.waitpid(child, 0)[1], signal.SIGKILL)
