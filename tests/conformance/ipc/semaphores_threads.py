"""System V semaphores in a container with threads, of which nobody can tell whether they have them undone (SEM_UNDO)"""
# refused-here: boxed move: cannot be told
import threading

from case import case, forever, same, syscall


@case
def semaphores_threads():
    threading.Thread(target=forever, daemon=True).start()
    identifier = syscall(64, 0, 1, 0o1600)
    try:
        # SETVAL
        syscall(66, identifier, 0, 16, 5)
        yield
        # GETVAL
        same("value", syscall(66, identifier, 0, 12), 5)
    finally:
        # IPC_RMID
        syscall(66, identifier, 0, 0)
