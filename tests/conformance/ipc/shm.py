"""A segment of System V shared memory that nobody has attached"""
# refused: System V
from case import case, read, same, syscall


def table(name):
    return {int(line.split()[1]): int(line.split()[3]) for line in read(f"/proc/sysvipc/{name}").splitlines()[1:]}


@case
def shm():
    identifier = syscall(29, 0, 4096, 0o1600)
    try:
        yield
        same("size", table("shm")[identifier], 4096)
    finally:
        # IPC_RMID
        syscall(31, identifier, 0, 0)
