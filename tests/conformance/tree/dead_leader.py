"""A session and a process group whose leaders have ended and are gone"""
import os

from case import case, forever, fork, prctl, same, status, until


@case
def dead_leader():
    reader, writer = os.pipe()

    def leader():
        os.setsid()
        child = fork(member)
        other = fork(grouped)
        os.setpgid(other, other)
        third = fork(grouped)
        os.setpgid(third, other)
        os.kill(other, 9)
        os.waitpid(other, 0)
        os.write(writer, f"{os.getpid()} {child} {other} {third}".encode())

    def member():
        forever()

    def grouped():
        forever()

    # PR_SET_CHILD_SUBREAPER: the orphans stay here.
    prctl(36, 1)
    pid = fork(leader)
    os.waitpid(pid, 0)
    session, child, group, third = (int(word) for word in os.read(reader, 99).split())
    until("the orphans", lambda: parent(child) == parent(third) == os.getpid())
    yield
    same("session", [os.getsid(member) for member in (child, third)], [session, session])
    same("groups", [os.getpgid(member) for member in (child, third)], [session, group])
    same("parents", [parent(member) for member in (child, third)], [os.getpid()] * 2)
    os.killpg(group, 9)
    same("ended", os.waitpid(third, 0)[1], 9)


def parent(pid):
    return int(status("PPid", pid))
