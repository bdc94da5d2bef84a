"""Processes that share working directory, root directory and umask (CLONE_FS): over exec, in a chroot, with an orphan"""
# with: CAP_SYS_CHROOT
import os
import signal
import sys

from case import case, clone, prctl, same, scratch, syscall

KCMP, KCMP_FS, CLONE_FS = 312, 3, 0x200


def share(one, other):
    return syscall(KCMP, one, other, KCMP_FS, 0, 0) == 0


def umask(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1], 8) for line in file if line.startswith("Umask"))


def cwd(pid):
    return os.path.basename(os.readlink(f"/proc/{pid}/cwd"))


@case
def directory_shared():
    for name in "here", "there", "root/below":
        os.makedirs(scratch(name))
    # PR_SET_CHILD_SUBREAPER: the orphan stays here.
    prctl(36, 1)
    os.chdir(scratch("here"))
    os.umask(0o027)
    reader, writer = os.pipe()

    def told():
        """A number of eight digits that somebody has written."""
        return int(os.read(reader, 8))

    def paused():
        os.write(writer, b"%08d" % os.getpid())
        while True:
            signal.pause()

    def executed():
        os.set_inheritable(writer, True)
        script = f"import os, signal; os.write({writer}, b'%08d' % os.getpid()); signal.pause()"
        os.execv(sys.executable, [sys.executable, "-S", "-c", script])

    def jailed():
        os.chroot(scratch("root"))
        os.chdir("/below")
        os.umask(0o070)
        clone(CLONE_FS, paused)
        paused()

    plain, program = clone(CLONE_FS, paused), clone(CLONE_FS, executed)
    ready = {told(), told()}
    os.waitpid(clone(CLONE_FS, lambda: clone(CLONE_FS, paused)), 0)
    orphan = told()
    prisoner = clone(0, jailed)
    inmates = sorted({told(), told()}, key=lambda pid: pid != prisoner)
    same("all of them", (ready, inmates[0]), ({plain, program}, prisoner))
    me = os.getpid()
    free = [me, plain, program, orphan]

    def state():
        pids = free + inmates
        sharing = [[share(one, two) for two in pids] for one in pids]
        return sharing, [(cwd(pid), umask(pid)) for pid in pids], [os.readlink(f"/proc/{pid}/root") for pid in inmates]

    def wanted(name, mask):
        sharing = [[(one < 4) == (two < 4) for two in range(6)] for one in range(6)]
        return sharing, [(name, mask)] * 4 + [("below", 0o070)] * 2, [scratch("root")] * 2

    same("before", state(), wanted("here", 0o027))
    now = ["here", 0o027]

    def change():
        now[:] = ["there" if now[0] == "here" else "here", now[1] ^ 0o050]
        os.chdir(scratch(now[0]))
        os.umask(now[1])

    yield change
    same("after", state(), wanted(*now))
    os.chdir(scratch("there"))
    os.umask(0o002)
    same("after a change", state(), wanted("there", 0o002))

