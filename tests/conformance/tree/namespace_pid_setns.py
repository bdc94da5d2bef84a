"""Two pid namespaces; children that were put into one of them from outside by setns"""
# with: CAP_SYS_ADMIN
import os

from case import case, kid, same, server

ENTER = "(lambda fd: (syscall(308, fd, 0x20000000), os.close(fd)))(os.open('/proc/%s/ns/pid', os.O_RDONLY))"


@case
def namespace_pid_setns():
    one, ask_one = server()
    ask_one("syscall(272, 0x20000000)")
    first, ask_first = kid(ask_one, "init")
    two, ask_two = server()
    ask_two("syscall(272, 0x20000000)")
    second, ask_second = kid(ask_two, "init")
    visitor, ask_visitor = server()
    kids = []
    for count in range(2):
        ask_visitor(ENTER % first)
        kids.append(kid(ask_visitor, f"in{count}"))
    # And its own children are its neighbours again.
    ask_visitor(ENTER % "self")
    home, ask_home = kid(ask_visitor, "home")

    def links():
        return [os.readlink(f"/proc/{pid}/ns/pid") for pid in (first, second, kids[0][0], kids[1][0], home)]

    def kinds():
        names = links()
        return [names.index(name) for name in names]

    assert kinds() == [0, 1, 0, 0, 4], kinds()
    assert os.readlink("/proc/self/ns/pid") == links()[4]
    inside = [ask("(os.getpid(), os.getppid())") for _, ask in kids]
    assert [parent for _, parent in inside] == [0, 0]
    yield
    same("namespaces", kinds(), [0, 1, 0, 0, 4])
    same("numbers", [ask("(os.getpid(), os.getppid())") for _, ask in kids], inside)
    same("the neighbour", ask_home("(os.getpid(), os.getppid())"), (home, visitor))
    same("children", os.readlink(f"/proc/{visitor}/ns/pid_for_children"), os.readlink("/proc/self/ns/pid"))
    same("a kill of the first one", ask_one(f"os.kill({first}, 9)"), None)
    same("takes both", [ask_visitor(f"os.waitpid({pid}, 0)") for pid, _ in kids], [(pid, 9) for pid, _ in kids])
    same("its end", ask_one(f"os.waitpid({first}, 0)"), (first, 9))
    same("and no other", [ask_home("os.getppid()"), ask_second("os.getpid()")], [visitor, 1])
