"""Children that begin and end all the time while the tree is copied"""
import os

from case import case, forever, fork, same, status


@case
def fork_many():
    kept = []

    def change():
        short = fork(lambda: os._exit(3))
        same("end", os.waitpid(short, 0)[1], 3 << 8)
        if len(kept) < 60:
            kept.append(fork(forever))

    change()
    yield change
    same("parents", {status("PPid", pid) for pid in kept}, {str(os.getpid())})
    for pid in kept:
        os.kill(pid, 15)
        same("end", os.waitpid(pid, 0)[1], 15)
