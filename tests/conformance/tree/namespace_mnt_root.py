"""Root directories in nested mount namespaces: one that was changed by pivot_root, one by chroot"""
# refused-here: host boxed: mnt namespace
# with: CAP_SYS_ADMIN CAP_SYS_CHROOT
import os

from case import case, mounts, read, same, scratch, server


@case
def namespace_mnt_root():
    pivoted, ask = server()
    # As sandboxes are made: a tmpfs becomes the root directory, with parts of the old one in it.
    ask("own_mounts() or os.mkdir(scratch('new')) or mount('root', scratch('new'), 'tmpfs', 0x6, 'size=2m,mode=755')")
    for name in ("usr", "proc", "data", "etc"):
        ask(f"os.mkdir(scratch('new/{name}'))")
    ask("os.mkdir(scratch('data')) or mount(scratch('data'), scratch('new/data'), flags=0x1000)")
    ask("mount('/usr', scratch('new/usr'), flags=0x1000) or mount('none', scratch('new/usr'), flags=0x1021)")
    # What is mounted in it comes along.
    ask("mount('/proc', scratch('new/proc'), flags=0x5000)")
    ask("os.chdir(scratch('new')) or syscall(155, b'.', b'.') and None")
    ask("syscall(166, b'.', 2) or os.chdir('/')")
    ask("globals().update(file=open('/etc/own', 'w+'), given=open('/data/given', 'w+'))")
    ask("(file.write('mine'), file.flush(), given.write('all'), given.flush()) and None")
    rooted, ask_rooted = server()
    ask_rooted("own_mounts() or os.makedirs(scratch('root/at')) or os.chdir(scratch('root/at'))")
    ask_rooted("mount('deep', scratch('root'), 'tmpfs') or os.mkdir(scratch('root/in')) or os.chroot(scratch('root'))")
    ask_rooted("os.chdir('/in') or open('/in/here', 'w').close()")

    def seen():
        root = os.readlink(f"/proc/{pivoted}/root"), os.readlink(f"/proc/{rooted}/root"), os.readlink(f"/proc/{rooted}/cwd")
        return ask("(os.getcwd(), sorted(os.listdir('/')), mounts())"), ask_rooted("(os.getcwd(), os.listdir('/'), os.listdir('.'))"), root

    before = seen()
    assert before[0][:2] == ("/", ["data", "etc", "proc", "usr"]) and before[1] == ("/in", ["in"], ["here"]), before
    assert before[2] == ("/", scratch("root"), scratch("root/in")), before[2]
    outside = mounts()
    yield
    same("root and working directories, mounts", seen(), before)
    same("mounts outside", mounts(), outside)
    same("content", ask("(file.seek(0), file.read(), given.seek(0), given.read())"), (0, "mine", 0, "all"))
    same("under its name", (ask("read('/etc/own')"), read(scratch("data/given"))), ("mine", "all"))
    same("read-only", ask("open('/usr/new', 'w')"), -30)
    same("itself", ask("int(os.readlink('/proc/self'))"), pivoted)
    same("the way back", ask_rooted("os.chroot('.') or os.listdir('/')"), ["here"])
