"""A child that makes its children in a pid namespace of their own; its first process ends, and all of it with it"""
# with: CAP_SYS_ADMIN
import os

from case import case, kid, same, server, status


def links(outer, inner):
    return [os.readlink(f"/proc/{pid}/ns/{name}") for pid, name in
            (("self", "pid"), (outer, "pid"), (outer, "pid_for_children"), (inner, "pid"))]


@case
def namespace_pid():
    outer, ask = server()
    ask("syscall(272, 0x20000000)")
    init, ask_init = kid(ask, "init")
    child, ask_child = kid(ask_init, "child")
    inside = ask_child("os.getpid()")
    assert ask_init("os.getpid()") == 1 and inside == child > 1
    own, theirs, children, inner = links(outer, init)
    assert own == theirs != children == inner, "they are not as they were to be"
    numbers = status("NSpid", init)
    yield
    same("numbers of the first process", status("NSpid", init), numbers)
    same("its own", ask_init("(os.getpid(), os.getppid())"), (1, 0))
    same("its child's", ask_child("(os.getpid(), os.getppid())"), (inside, 1))
    own, theirs, children, inner = links(outer, init)
    same("namespaces", (own == theirs, children == inner, own == inner), (True, True, False))
    late, ask_late = kid(ask, "late")
    assert ask_late("os.getpid()") not in (1, inside)
    same("the parent of a late one", ask_late("os.getppid()"), 0)
    same("a kill of the first", ask(f"os.kill({init}, 9)"), None)
    # It ends when nobody is left.
    same("the end of the late one", ask(f"os.waitpid({late}, 0)"), (late, 9))
    same("its end", ask(f"os.waitpid({init}, 0)"), (init, 9))
    same("what comes later", ask("os.fork()"), -12)
