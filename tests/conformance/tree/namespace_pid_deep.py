"""Pid namespaces in pid namespaces: numbers at three levels, and signals between them"""
# with: CAP_SYS_ADMIN
import os
import signal

from case import case, kid, read, same, server, status, until

WAIT = "(lambda i: (i.si_signo, i.si_pid))(signal.sigtimedwait({signal.SIGUSR1}, 10))"


@case
def namespace_pid_deep():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    outer, ask = server()
    ask("syscall(272, 0x20000000)")
    first, ask_first = kid(ask, "first")
    # Its children are two namespaces below.
    ask_first("syscall(272, 0x20000000)")
    second, ask_second = kid(ask_first, "second")
    third, ask_third = kid(ask_second, "third")
    last, ask_last = kid(ask_third, "last")
    assert (second, third, last) == (2, 2, 3), (second, third, last)
    # /proc is not theirs: who they are here, of those below this program.
    here, below = {}, [outer]
    while below:
        pid = below.pop()
        numbers = [int(number) for number in status("NSpid", pid).split()]
        here[pid] = numbers[numbers.index(pid):]
        below += [int(child) for child in read(f"/proc/{pid}/task/{pid}/children").split()]
    deep = {tuple(numbers[-2:]): pid for pid, numbers in here.items() if len(numbers) == 3}
    assert set(deep) == {(2, 1), (3, 2), (4, 3)}, here
    yield
    for pid, numbers in here.items():
        same(f"numbers of {pid}", [int(number) for number in status("NSpid", pid).split()][-len(numbers):], numbers)
    same("the last one's", ask_last("(os.getpid(), os.getppid())"), (3, 2))
    same("the third one's", ask_third("(os.getpid(), os.getppid())"), (2, 1))
    same("the second one's", ask_second("(os.getpid(), os.getppid())"), (1, 0))
    # From inside, from the level above, from here.
    same("sent", ask_last("os.kill(2, 10)"), None)
    same("a signal from inside", ask_third(WAIT), (10, 3))
    same("sent", ask_first("os.kill(4, 10)"), None)
    same("a signal from above", ask_last(WAIT), (10, 0))
    os.kill(deep[3, 2], 10)
    same("a signal from here", ask_third(WAIT), (10, 0))
    same("nobody", ask_last("os.kill(4, 0)"), -3)
    same("a fatal signal of its own for the first one", ask_third("os.kill(1, 15)"), None)
    same("which it does not get", ask_second("os.getpid()"), 1)
    same("the end of the third", ask_third("os.kill(3, 9)"), None)
    same("its status", ask_third("os.waitpid(3, 0)"), (3, 9))
    os.kill(deep[2, 1], 9)
    same("the end of the namespace", ask_first("os.waitpid(2, 0)"), (2, 9))
    for pid in deep.values():
        until(f"the end of {pid}", lambda: not os.path.exists(f"/proc/{pid}"))
