"""Nested mount namespaces as a service manager makes them: a tmpfs and a bind over a directory, read-only binds, files open on them"""
# refused-here: host boxed: mnt namespace
# with: CAP_SYS_ADMIN
import os

from case import case, mounts, read, same, scratch, server

KEEP = "globals().update({}) or None"
OPTIONS = "size=1m,mode=1777"


@case
def namespace_mnt_tmp():
    for name in ("tmp", "var", "private", "etc", "etc/sub"):
        os.mkdir(scratch(name))
    for name in ("tmp/seen", "etc/seen"):
        with open(scratch(name), "w") as file:
            file.write(name)
    before = os.open(scratch("tmp/seen"), os.O_RDONLY)
    pid, ask = server()
    ask("own_mounts()")
    ask(f"mount('own', scratch('tmp'), 'tmpfs', 0x2, '{OPTIONS}')")
    ask("mount(scratch('private'), scratch('var'), flags=0x1000)")
    # Read-only, and a writable part of it.
    ask("mount(scratch('etc'), scratch('etc'), flags=0x1000)")
    ask("mount('none', scratch('etc'), flags=0x1021)")
    ask("mount(scratch('private'), scratch('etc/sub'), flags=0x1000)")
    ask("globals().update(own=open(scratch('tmp/own'), 'w+'), bound=open(scratch('var/bound'), 'w+'))")
    ask("(own.write('mine'), own.flush(), bound.write('yours'), bound.flush(), os.mkdir(scratch('tmp/dir'))) and None")
    # A file that it opened before, on a mount of the container's.
    ask("globals().update(memory=mmap.mmap(own.fileno(), 4)) or os.chdir(scratch('tmp/dir'))")
    seen = ask("[mount_of(file.fileno()) for file in (own, bound)]")
    assert seen == [scratch("tmp"), scratch("var")], seen
    assert ask(f"mount_of({before})") is None
    table, outside = ask("mounts()"), mounts()
    assert len(table) == len(outside) + 4
    yield
    same("mounts", (ask("mounts()"), mounts()), (table, outside))
    same("mounts of open files", ask("[mount_of(file.fileno()) for file in (own, bound)]"), seen)
    same("the mount of one from before", (ask(f"mount_of({before})"), ask(f"os.pread({before}, 20, 0)")), (None, b"tmp/seen"))
    same("content", ask("(own.seek(0), own.read(), bound.seek(0), bound.read(), bytes(memory))"), (0, "mine", 0, "yours", b"mine"))
    same("names", ask("(sorted(os.listdir(scratch('tmp'))), os.listdir(scratch('var')))"), (["dir", "own"], ["bound"]))
    same("its directory", ask("os.getcwd()"), scratch("tmp/dir"))
    same("outside", (os.listdir(scratch("tmp")), os.listdir(scratch("var")), os.listdir(scratch("private"))), (["seen"], [], ["bound"]))
    same("read-only", ask("open(scratch('etc/new'), 'w')"), -30)
    same("and not below", ask("open(scratch('etc/sub/new'), 'w').close()"), None)
    same("which is", read(scratch("private/new")), "")
    same("the same file system", ask("(os.stat(scratch('tmp')).st_dev == os.fstat(own.fileno()).st_dev)"), True)
    same("a mode of the tmpfs", ask("oct(os.stat(scratch('tmp')).st_mode)"), "0o41777")
    same("memory of a file", ask("memory.__setitem__(0, 77) or own.seek(0) or own.read()"), "Mine")
