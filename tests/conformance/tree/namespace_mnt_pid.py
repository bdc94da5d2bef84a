"""A nested pid namespace with a /proc of its own in a nested mount namespace (unshare --pid --mount-proc)"""
# refused-here: host boxed: mnt namespace
# with: CAP_SYS_ADMIN
import os

from case import case, kid, mounts, read, same, server

NUMBERS = "sorted(int(name) for name in os.listdir('/proc') if name.isdigit())"


@case
def namespace_mnt_pid():
    outer, ask = server()
    ask("syscall(272, 0x20000000)")
    init, ask_init = kid(ask, "init")
    ask_init("own_mounts()")
    # Over the old one, as unshare(1) does it; what is mounted in that is covered.
    ask_init("mount('proc', '/proc', 'proc', 0xe)")
    child, ask_child = kid(ask_init, "child")
    later, ask_later = kid(ask_init, "later")
    # A part of it over another part, read-only.
    ask_init("mount('/proc/sys', '/proc/sys', flags=0x1000) or mount('none', '/proc/sys', flags=0x1021)")
    ask_child("globals().update(status=open('/proc/1/status'), table=os.open('/proc', os.O_RDONLY))")
    assert ask_child(NUMBERS) == ask_init(NUMBERS) == [1, child, later]
    assert ask_init("os.readlink('/proc/self')") == "1"
    table = ask_init("mounts()")
    yield
    same("mounts", ask_init("mounts()"), table)
    same("mounts of another one", ask_later("mounts()"), table)
    same("processes", (ask_child(NUMBERS), ask_init(NUMBERS)), ([1, child, later], [1, child, later]))
    same("itself", (ask_init("os.readlink('/proc/self')"), ask_child("os.readlink('/proc/self')")), ("1", str(child)))
    same("an open file of it", ask_child("[line for line in status if line.startswith('NSpid')]"), ["NSpid:\t1\n"])
    same("an open directory", ask_child("sorted(int(name) for name in os.listdir(table) if name.isdigit())"), [1, child, later])
    same("read-only", ask_init("open('/proc/sys/kernel/domainname', 'w')"), -30)
    same("the outer /proc", read(f"/proc/{init}/status").splitlines()[0].split()[1], read("/proc/self/status").splitlines()[0].split()[1])
    same("an end", ask_init(f"os.kill({later}, 9) or os.waitpid({later}, 0)"), (later, 9))
    same("which shows", ask_child(NUMBERS), [1, child])
