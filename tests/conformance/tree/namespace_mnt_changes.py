"""Mount namespaces that come and go while they are copied, and mounts in them"""
# refused-here: host boxed: mnt namespace
# with: CAP_SYS_ADMIN
import os

from case import case, mounts, same, scratch, server

POINTS = "[row[0][len(scratch('')):] for row in mounts() if row[0].startswith(scratch(''))]"


@case
def namespace_mnt_changes():
    for name in ("one", "two"):
        os.mkdir(scratch(name))
    stays, ask = server()
    ask("own_mounts() or mount('one', scratch('one'), 'tmpfs')")
    leaves, ask_other = server()
    # By a pidfd: an open namespace does not move.
    ask_other(f"globals().update(outside=os.pidfd_open({os.getpid()}))")
    turns = [19]

    def last():
        return min(turns[0], 400) // 20

    def change():
        turns[0] += 1
        # Not for good: a move ends only when it stands still.
        if turns[0] % 20 or turns[0] > 400:
            return
        if last() % 2:
            ask(f"mount('two', scratch('two'), 'tmpfs') or open(scratch('two/at'), 'w').write('{last()}')")
        else:
            ask("syscall(166, scratch('two').encode(), 2)")
        ask(f"open(scratch('one/at'), 'w').write('{last()}')")
        # Out of its own, which ends, and into a new one.
        ask_other("syscall(308, outside, 0x20000)")
        ask_other(f"own_mounts() or mount('one', scratch('one'), 'tmpfs') or open(scratch('one/of'), 'w').write('{last()}')")

    change()
    outside = mounts()
    yield change
    same("mounts", ask(POINTS), ["one", "two"] if last() % 2 else ["one"])
    same("content", int(ask("read(scratch('one/at'))")), last())
    same("of the other one", (ask_other(POINTS), int(ask_other("read(scratch('one/of'))"))), (["one"], last()))
    links = {os.readlink(f"/proc/{pid}/ns/mnt") for pid in (stays, leaves, os.getpid())}
    same("namespaces", len(links), 3)
    same("mounts outside", mounts(), outside)
