"""A program whose file was deleted while it runs"""
# refused: its program
import os
import shutil
import sys

from case import case, fork, same, scratch, until


@case
def deleted_program():
    shutil.copy(os.path.realpath(sys.executable), scratch("tool"))
    text = "import signal\nwhile True: signal.pause()"
    child = fork(lambda: os.execv(scratch("tool"), ["tool", "-c", text]))
    until("the program", lambda: os.readlink(f"/proc/{child}/exe") == scratch("tool"))
    until("its pause", lambda: "pause" in open(f"/proc/{child}/wchan").read() or "sigsuspend" in open(f"/proc/{child}/wchan").read() or open(f"/proc/{child}/stat").read().rsplit(")")[1].split()[0] == "S")
    os.unlink(scratch("tool"))
    yield
    same("exe", os.readlink(f"/proc/{child}/exe"), scratch("tool") + " (deleted)")
    os.kill(child, 15)
    same("end", os.WTERMSIG(os.waitpid(child, 0)[1]), 15)
