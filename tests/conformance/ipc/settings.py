"""Limits of an IPC namespace that the program changes while it runs"""
# not: host: they would be the machine's
# with: CAP_SYS_ADMIN
import os

from case import case, read, same, syscall

UNSHARE, NEWIPC = 272, 0x8000000
FSOPEN, FSCONFIG, FSMOUNT, CREATE = 430, 431, 432, 6
# The number of the namespace that the kernel begins with (PROC_IPC_INIT_INO).
OF_THE_MACHINE = "ipc:[4026531839]"

FILES = {
    "kernel/shmmax": lambda turn: str((1 << 30) + turn),
    "kernel/msgmax": lambda turn: str(5000 + turn),
    "kernel/sem": lambda turn: f"{100 + turn}\t32000\t500\t32000",
    "fs/mqueue/msg_max": lambda turn: str(20 + turn % 5),
    "fs/mqueue/msg_default": lambda turn: str(3 + turn % 5),
}


@case
def settings():
    if os.readlink("/proc/self/ns/ipc") == OF_THE_MACHINE:
        syscall(UNSHARE, NEWIPC)
    turn = [0]

    def change():
        turn[0] += 1
        # A file system that is mounted nowhere: that of a container is for reading only.
        context = syscall(FSOPEN, b"proc", 0)
        syscall(FSCONFIG, context, CREATE, 0, 0, 0)
        proc = syscall(FSMOUNT, context, 0, 0)
        for name, value in FILES.items():
            fd = os.open(f"sys/{name}", os.O_WRONLY, dir_fd=proc)
            os.write(fd, value(turn[0]).encode())
            os.close(fd)
        os.close(proc)
        os.close(context)

    change()
    yield change
    for name, value in FILES.items():
        same(name, read(f"/proc/sys/{name}").split(), value(turn[0]).split())
