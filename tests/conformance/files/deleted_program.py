"""A program whose file was deleted while it runs"""
import os
import shutil
import sys

from case import case, fork, same, scratch


@case
def deleted_program():
    shutil.copy(os.path.realpath(sys.executable), scratch("tool"))
    text = "import signal\nprint('up', flush=True)\nwhile True: signal.pause()"
    out, into = os.pipe()
    words = os.fdopen(out, "rb")

    def run():
        os.dup2(into, 1)
        os.execv(scratch("tool"), ["tool", "-c", text])

    child = fork(run)
    same("its word", words.readline(), b"up\n")
    size = os.stat(scratch("tool")).st_size
    os.unlink(scratch("tool"))
    yield
    same("exe", os.readlink(f"/proc/{child}/exe"), scratch("tool") + " (deleted)")
    with open(f"/proc/{child}/exe", "rb") as now, open(os.path.realpath(sys.executable), "rb") as then:
        same("its program", now.read() == then.read(), True)
    same("size", os.stat(f"/proc/{child}/exe").st_size, size)
    try:
        os.open(f"/proc/{child}/exe", os.O_WRONLY)
        assert False, "a program that runs is open for writing"
    except OSError as error:
        same("error", error.strerror, "Text file busy")
    again = fork(lambda: os.execv(f"/proc/{child}/exe", ["tool", "-c", "raise SystemExit(5)"]))
    same("started again", os.waitstatus_to_exitcode(os.waitpid(again, 0)[1]), 5)
    os.kill(child, 15)
    same("end", os.WTERMSIG(os.waitpid(child, 0)[1]), 15)
