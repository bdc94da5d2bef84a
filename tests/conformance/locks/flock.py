"""flock: exclusive and shared, of descriptions, of a directory"""
import fcntl
import os

from case import case, same, scratch


@case
def flock():
    os.mkdir(scratch("dir"))
    held = {}
    for name, how in (("a", fcntl.LOCK_EX), ("b", fcntl.LOCK_SH), ("dir", fcntl.LOCK_EX)):
        fd = os.open(scratch(name), os.O_RDONLY if name == "dir" else os.O_CREAT | os.O_RDWR)
        fcntl.flock(fd, how)
        held[name] = (fd, how)
    free = os.open(scratch("c"), os.O_CREAT)
    fcntl.flock(free, fcntl.LOCK_EX)
    fcntl.flock(free, fcntl.LOCK_UN)
    yield

    def can(name, how):
        other = os.open(scratch(name), os.O_RDONLY)
        try:
            fcntl.flock(other, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(other)

    for name, (_, how) in held.items():
        found = (can(name, fcntl.LOCK_SH), can(name, fcntl.LOCK_EX))
        same(f"locks of {name}", found, (how == fcntl.LOCK_SH, False))
    same("the free one", can("c", fcntl.LOCK_EX), True)
    for name, (fd, _) in held.items():
        fcntl.flock(fd, fcntl.LOCK_UN)
        same(f"{name} is free", can(name, fcntl.LOCK_EX), True)
