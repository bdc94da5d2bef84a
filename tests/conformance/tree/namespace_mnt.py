"""Children in mount namespaces of their own: two in one, one in another, with nothing mounted in them"""
# refused-here: host boxed: mnt namespace
# with: CAP_SYS_ADMIN
import os

from case import case, mounts, same, server


@case
def namespace_mnt():
    first, ask_first = server()
    second, ask_second = server()
    third, ask_third = server()
    ask_first("own_mounts()")
    ask_third("own_mounts()")
    enter = f"(lambda fd: (syscall(308, fd, 0x20000), os.close(fd)))(os.open('/proc/{first}/ns/mnt', os.O_RDONLY))"
    assert ask_second(enter) == (0, None)

    def links():
        return [os.readlink(f"/proc/{pid}/ns/mnt") for pid in (first, second, third, os.getpid())]

    a, b, c, d = links()
    assert a == b and len({a, c, d}) == 3, "they are not as they were to be"
    asked = [ask_first, ask_second, ask_third]
    before = [ask("(mounts(), os.getcwd(), os.readlink('/proc/self/root'))") for ask in asked]
    assert before[0][0] == mounts()
    yield
    a, b, c, d = links()
    same("who shares", (a == b, len({a, c, d})), (True, 3))
    same("mounts and directories", [ask("(mounts(), os.getcwd(), os.readlink('/proc/self/root'))") for ask in asked], before)
    same("a mount of the first", ask_first("os.mkdir(scratch('t')) or mount('t', scratch('t'), 'tmpfs')"), None)
    same("shows to the second", ask_second("os.stat(scratch('t')).st_dev") == ask_first("os.stat(scratch('t')).st_dev"), True)
    same("and not to the third", ask_third("os.stat(scratch('t')).st_dev") == os.stat(os.getcwd()).st_dev, True)
