"""A file of /dev/shm that two processes have mapped, each for itself; it was removed"""
import mmap
import os
import signal

from case import case, forever, fork, same, until


@case
def shared_unrelated():
    name = f"/dev/shm/gantry-{os.getpid()}-unrelated"
    fd = os.open(name, os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 8 * mmap.PAGESIZE)
    go, ask = os.pipe()

    def child():
        own = os.open(name, os.O_RDWR)
        memory = mmap.mmap(own, 8 * mmap.PAGESIZE)
        memory[0] = 1
        os.read(go, 1)
        memory[2] = memory[1] + 1
        forever()

    pid = fork(child)
    memory = mmap.mmap(fd, 8 * mmap.PAGESIZE)
    until("the child", lambda: memory[0])
    os.unlink(name)
    yield
    memory[1] = 41
    os.write(ask, b"x")
    until("the child's answer", lambda: memory[2] == 42)
    os.kill(pid, signal.SIGKILL)
    same("links", os.fstat(fd).st_nlink, 0)
