"""Propagation between mount namespaces: a peer of a mount outside, a slave of it, and one without"""
# refused-here: host boxed: mnt namespace
# with: CAP_SYS_ADMIN
import os

from case import case, mounts, same, scratch, server


@case
def namespace_mnt_shared():
    os.mkdir(scratch("all"))
    # Everything in one of its own, from which the others are copied: the program itself may be one of the host's.
    outer, ask = server()
    ask("own_mounts() or mount('all', scratch('all'), 'tmpfs') or mount('none', scratch('all'), flags=0x100000)")
    ask("[os.mkdir(scratch('all/' + name)) for name in ('one', 'two', 'three')] and None")
    asked = []
    for change in (None, 0x80000, 0x40000):
        pid, ask_one = server()
        ask_one(f"(lambda fd: (syscall(308, fd, 0x20000), os.close(fd)))(os.open('/proc/{outer}/ns/mnt', os.O_RDONLY))")
        ask_one("syscall(272, 0x20000)")
        if change:
            ask_one(f"mount('none', scratch('all'), flags={change})")
        asked.append(ask_one)
    points = "[row[0][len(scratch('all')):] for row in mounts() if row[0].startswith(scratch('all'))]"
    assert ask("mount('x', scratch('all/one'), 'tmpfs')") is None
    assert [one(points) for one in [ask] + asked] == [["", "/one"]] * 3 + [[""]]
    table = mounts()
    yield
    same("what there was", [one(points) for one in [ask] + asked], [["", "/one"]] * 3 + [[""]])
    ask("mount('y', scratch('all/two'), 'tmpfs')")
    same("from the first", [one(points) for one in [ask] + asked], [["", "/one", "/two"]] * 3 + [[""]])
    asked[0]("mount('z', scratch('all/three'), 'tmpfs')")
    same("from its peer", [one(points) for one in [ask] + asked], [["", "/one", "/three", "/two"]] * 3 + [[""]])
    asked[1]("syscall(166, scratch('all/three').encode(), 2)")
    same("not from the slave", [len(one(points)) for one in [ask] + asked], [4, 4, 3, 1])
    same("nothing outside", mounts(), table)
