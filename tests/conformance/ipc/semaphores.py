"""System V semaphores"""
# refused-here: boxed move: System V
from case import case, same, syscall


@case
def semaphores():
    identifier = syscall(64, 0, 3, 0o1600)
    try:
        # SETVAL
        syscall(66, identifier, 1, 16, 5)
        yield
        # GETVAL
        same("value", syscall(66, identifier, 1, 12), 5)
    finally:
        # IPC_RMID
        syscall(66, identifier, 0, 0)
