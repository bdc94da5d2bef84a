"""In a pid namespace, the number of a process that has ended is not given to the next one"""
# with: CAP_SYS_ADMIN
from case import case, kid, same, server


@case
def namespace_pid_next_number():
    _, ask = server()
    ask("syscall(272, 0x20000000)")
    _, ask_init = kid(ask, "init")
    # Ended, living.
    first = ask_init("fork(lambda: None)")
    same("its end", ask_init(f"os.waitpid({first}, 0)"), (first, 0))
    second, _ = kid(ask_init, "second")
    assert 1 < first < second
    yield
    third = ask_init("fork(lambda: None)")
    same("its end", ask_init(f"os.waitpid({third}, 0)"), (third, 0))
    assert third > second, f"{third} after {second}, and {first} had ended"
