"""A subreaper, and orphans that are its children"""
import os

from case import case, forever, fork, prctl, same, status, until


@case
def subreaper():
    prctl(36, 1)
    reader, writer = os.pipe()
    middle = fork(lambda: os.write(writer, b"%d" % fork(forever)))
    os.waitpid(middle, 0)
    orphan = int(os.read(reader, 9))
    until("the orphan", lambda: status("PPid", orphan) == str(os.getpid()))
    yield
    same("parent", status("PPid", orphan), str(os.getpid()))
    later = fork(lambda: os.write(writer, b"%d" % fork(forever)))
    os.waitpid(later, 0)
    second = int(os.read(reader, 9))
    until("the second", lambda: status("PPid", second) == str(os.getpid()))
    for pid in (orphan, second):
        os.kill(pid, 9)
        same("end", os.waitpid(pid, 0)[1], 9)
