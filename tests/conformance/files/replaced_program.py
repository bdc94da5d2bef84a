"""A program and a library of it that were replaced by others of the same names while it runs"""
import os
import shutil
import sys

from case import case, fork, same, scratch

TEXT = "import signal, mmap\nsignal.pthread_sigmask(signal.SIG_BLOCK, [10])\nf = open(0)\nm = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\nf.close()\n" \
    "print('up', flush=True)\nwhile signal.sigwait([10]): print(m[:7].decode(), flush=True)"


@case
def replaced_program():
    shutil.copy(os.path.realpath(sys.executable), scratch("tool"))
    with open(scratch("library"), "wb") as file:
        file.write(b"library" * 1000)
    out, into = os.pipe()
    words = os.fdopen(out, "rb")

    def run():
        os.dup2(into, 1)
        os.dup2(os.open(scratch("library"), os.O_RDONLY), 0)
        os.execv(scratch("tool"), ["tool", "-c", TEXT])

    child = fork(run)
    same("its word", words.readline(), b"up\n")
    for name in ("tool", "library"):
        with open(scratch("new"), "wb") as file:
            file.write(b"another one")
        os.rename(scratch("new"), scratch(name))
    yield
    with open(f"/proc/{child}/exe", "rb") as now, open(os.path.realpath(sys.executable), "rb") as then:
        same("its program", now.read() == then.read(), True)
    for name in ("tool", "library"):
        with open(scratch(name), "rb") as file:
            same("what replaced it", file.read(), b"another one")
    os.kill(child, 10)
    same("its library", words.readline(), b"library\n")
    os.kill(child, 15)
    same("end", os.WTERMSIG(os.waitpid(child, 0)[1]), 15)
