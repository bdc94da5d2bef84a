"""Threads with a working directory, a root directory and a umask of their own (unshare of CLONE_FS, as Samba does)"""
# with: CAP_SYS_CHROOT
import os

from case import Asked, case, same, scratch, syscall


def where():
    """Working directory, what the root directory has, umask."""
    mask = os.umask(0)
    os.umask(mask)
    return os.getcwd(), os.path.exists("/inside"), mask


@case
def thread_directory():
    for name in "process", "one", "two", "root", "later":
        os.makedirs(scratch(name))
    with open(scratch("root/inside"), "w"):
        pass
    os.makedirs(scratch("root/below"))

    def one():
        syscall(272, 0x200)
        os.chdir(scratch("one"))
        os.umask(0o077)

    def two():
        syscall(272, 0x200)
        os.chroot(scratch("root"))
        os.chdir("/below")
        os.umask(0o007)

    os.chdir(scratch("process"))
    os.umask(0o027)
    shared = Asked()
    first, second = Asked(one), Asked(two)
    wanted = [
        (scratch("process"), False, 0o027),
        (scratch("process"), False, 0o027),
        (scratch("one"), False, 0o077),
        ("/below", True, 0o007),
    ]

    def all_of_them():
        return [where(), shared.ask(where), first.ask(where), second.ask(where)]

    same("before", all_of_them(), wanted)
    yield
    same("directories and masks", all_of_them(), wanted)
    os.chdir(scratch("later"))
    os.umask(0o022)
    wanted[0] = wanted[1] = (scratch("later"), False, 0o022)
    same("after a change of the process", all_of_them(), wanted)
    first.ask(lambda: os.chdir(scratch("two")))
    wanted[2] = (scratch("two"), False, 0o077)
    same("after a change of a thread", all_of_them(), wanted)
