"""Nested mount namespaces of a service manager: everything is shared in its own, slaves of that in those of its services"""
# refused-here: host boxed: mnt namespace
# with: CAP_SYS_ADMIN
import os

from case import case, read, same, scratch, server

POINTS = "[row[0][len(scratch('')):] for row in mounts() if row[0].startswith(scratch(''))]"


def groups(pid):
    """How many mounts are shared, slaves, both."""
    lines = read(f"/proc/{pid}/mountinfo").splitlines()
    kinds = [(" shared:" in line, " master:" in line) for line in lines]
    return [kinds.count(kind) for kind in ((False, False), (True, False), (False, True), (True, True))]


@case
def namespace_mnt_slave():
    for name in ("tmp", "run", "late", "later"):
        os.mkdir(scratch(name))
    # Stands for the first process: the program itself may be one of the host's.
    manager, ask = server()
    # MS_REC | MS_SHARED
    ask("own_mounts() or mount('none', '/', flags=0x104000) or mount('run', scratch('run'), 'tmpfs')")
    services = []
    for change in (0x84000, 0x104000):
        pid, ask_one = server()
        ask_one(f"(lambda fd: (syscall(308, fd, 0x20000), os.close(fd)))(os.open('/proc/{manager}/ns/mnt', os.O_RDONLY))")
        # MS_REC | MS_SLAVE, and shared again below that.
        ask_one(f"syscall(272, 0x20000) or mount('none', '/', flags=0x84000) or mount('none', '/', flags={change})")
        ask_one("mount('tmp', scratch('tmp'), 'tmpfs') or open(scratch('tmp/own'), 'w').close()")
        services.append((pid, ask_one))
    pids = [manager] + [pid for pid, _ in services]
    asked = [ask] + [one for _, one in services]
    before = [groups(pid) for pid in pids]
    assert before[0][0] == before[0][2] == before[0][3] == 0 and before[1][2] > 2 and before[2][3] > 2, before
    assert [one(POINTS) for one in asked] == [["run"], ["run", "tmp"], ["run", "tmp"]]
    yield
    same("peer groups", [groups(pid) for pid in pids], before)
    same("mounts", [one(POINTS) for one in asked], [["run"], ["run", "tmp"], ["run", "tmp"]])
    ask("mount('late', scratch('late'), 'tmpfs')")
    same("a mount of the manager", [one(POINTS) for one in asked], [["late", "run"], ["late", "run", "tmp"], ["late", "run", "tmp"]])
    asked[2]("mount('later', scratch('later'), 'tmpfs')")
    same("and of a service", ["later" in one(POINTS) for one in asked], [False, False, True])
