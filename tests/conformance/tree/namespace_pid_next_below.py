"""In a pid namespace of its own, processes whose children would be in one below it, which has none yet: one since the move began"""
# with: CAP_SYS_ADMIN
from case import case, kid, same, server

NEW_BELOW = "syscall(272, 0x20000000)"


@case
def namespace_pid_next_below():
    _, ask = server()
    ask(NEW_BELOW)
    _, ask_init = kid(ask, "init")
    number, ask_second = kid(ask_init, "second")
    last, ask_third = kid(ask_init, "third")
    ask_second(NEW_BELOW)
    left = []

    def change():
        if not left:
            left.append(ask_third(NEW_BELOW))

    yield change
    same("own numbers", (ask_second("os.getpid()"), ask_third("os.getpid()")), (number, last))
    for name, asked, below in ("second", ask_second, True), ("third", ask_third, bool(left)):
        inner, ask_inner = kid(asked, "inner")
        if below:
            same(f"number of the {name}'s first child", ask_inner("os.getpid()"), 1)
            same("and of its child", ask_inner("fork(forever)"), 2)
        assert inner > last, f"{inner} after {last}"
        last = inner
    assert ask_init("fork(forever)") > last
