"""An overlay that only a nested mount namespace has, of directories of the container"""
# refused-here: host boxed: mnt namespace
# with: CAP_SYS_ADMIN
import os

from case import case, mounts, read, same, scratch, server


@case
def namespace_mnt_overlay():
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(scratch(name))
    with open(scratch("lower/a"), "w") as file:
        file.write("below")
    pid, ask = server()
    data = ",".join(f"{key}={scratch(name)}" for key, name in (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")))
    ask(f"own_mounts() or mount('all', scratch('merged'), 'overlay', data='{data}')")
    ask("globals().update(file=open(scratch('merged/b'), 'w+')) or (file.write('above'), file.flush()) and None")
    table = ask("mounts()")
    assert len(table) == len(mounts()) + 1
    yield
    same("mounts", ask("mounts()"), table)
    same("content", ask("(file.seek(0), file.read(), read(scratch('merged/a')))"), (0, "above", "below"))
    same("outside", (os.listdir(scratch("merged")), os.listdir(scratch("upper"))), ([], ["b"]))
    same("a change", ask("open(scratch('merged/a'), 'w').write('changed')"), 7)
    same("which is above", (read(scratch("lower/a")), read(scratch("upper/a"))), ("below", "changed"))
