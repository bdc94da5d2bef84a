"""A file system of message queues of a nested IPC namespace"""
# refused-here: host boxed: mnt namespace
# refused-here: move: message queues of another IPC namespace
# with: CAP_SYS_ADMIN
import os

from case import case, same, scratch, server


@case
def namespace_mnt_queues():
    os.mkdir(scratch("queues"))
    pid, ask = server()
    ask("syscall(272, 0x8000000) or own_mounts() or mount('queues', scratch('queues'), 'mqueue')")
    yield
    same("its type", ask("[row[2] for row in mounts() if row[0] == scratch('queues')]"), ["mqueue"])
