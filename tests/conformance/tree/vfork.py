"""A parent that waits in vfork for its child"""
# refused: vfork
import os

from case import case, forever, fork, status, until


@case
def vfork():
    def child():
        # CLONE_VM | CLONE_VFORK, by what posix_spawn does: the program is a fifo that is opened first.
        os.mkfifo("gate")
        actions = [(os.POSIX_SPAWN_OPEN, 0, "gate", os.O_RDONLY, 0)]
        os.posix_spawn("/bin/true", ["true"], {}, file_actions=actions)
        forever()

    pid = fork(child)
    until("it waits", lambda: status("State", pid).startswith("D") or waiting(pid))
    yield
    writer = os.open("gate", os.O_WRONLY)
    until("it goes on", lambda: not waiting(pid))
    os.close(writer)


def waiting(pid):
    with open(f"/proc/{pid}/syscall") as file:
        # vfork, clone, clone3
        return file.read().split()[0] in ("58", "56", "435")
