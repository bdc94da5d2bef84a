"""A root directory of a child's own (chroot)"""
import os

from case import case, fork, forever, same, scratch


@case
def chroot():
    os.makedirs(scratch("root/inner"))

    def work():
        os.chroot(scratch("root"))
        os.chdir("/inner")
        forever()

    pid = fork(work)
    import time
    while os.readlink(f"/proc/{pid}/cwd") != scratch("root/inner"):
        time.sleep(0.001)
    yield
    same("root", os.readlink(f"/proc/{pid}/root"), scratch("root"))
    same("directory", os.readlink(f"/proc/{pid}/cwd"), scratch("root/inner"))
