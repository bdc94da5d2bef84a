"""Inside a pid namespace: sessions, a group whose leader has ended, zombies, a stopped child, orphans"""
# with: CAP_SYS_ADMIN
import os

from case import case, kid, same, server

IDS = "(os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0))"


@case
def namespace_pid_jobs():
    outer, ask = server()
    ask("syscall(272, 0x20000000)")
    init, ask_init = kid(ask, "init")
    # In the group and session of this program, which have no number there.
    plain, ask_plain = kid(ask_init, "plain")
    leader, ask_leader = kid(ask_init, "leader")
    ask_leader("os.setsid()")
    # Its group is that of a child that ends.
    first, ask_one = kid(ask_leader, "one")
    second, ask_two = kid(ask_leader, "two")
    ask_leader(f"os.setpgid({first}, {first}) or os.setpgid({second}, {first})")
    ask_leader(f"os.kill({first}, 9) or os.waitpid({first}, 0)")
    stopped, ask_stopped = kid(ask_leader, "stopped")
    ask_leader(f"os.setpgid({stopped}, {stopped}) or os.kill({stopped}, 19) or os.waitpid({stopped}, os.WUNTRACED)")
    zombie, _ = kid(ask_init, "zombie")
    killed, _ = kid(ask_leader, "killed")
    ask_init(f"os.kill({zombie}, 9)")
    ask_leader(f"os.kill({killed}, 15)")
    ask_leader(f"until('an end', lambda: os.waitid(os.P_PID, {killed}, os.WEXITED | os.WNOWAIT)) and None")
    # An orphan: the first process of the namespace has it.
    middle, ask_middle = kid(ask_init, "middle")
    orphan = ask_middle("fork(forever)")
    ask_init(f"os.kill({middle}, 9) or os.waitpid({middle}, 0)")
    asked = [ask_init, ask_plain, ask_leader, ask_two]
    before = [one(IDS) for one in asked]
    assert before[1] == (plain, 1, 0, 0) and before[3] == (second, leader, first, leader), before
    yield
    same("who they are", [one(IDS) for one in asked], before)
    same("the stopped one goes on", ask_leader(f"os.kill({stopped}, 18) or os.waitpid({stopped}, os.WCONTINUED)"), (stopped, 0xffff))
    same("and is itself", ask_stopped(IDS), (stopped, leader, stopped, leader))
    same("the zombie", ask_init(f"os.waitpid({zombie}, 0)"), (zombie, 9))
    same("the killed one", ask_leader(f"os.waitpid({killed}, 0)"), (killed, 15))
    same("the orphan", ask_init(f"os.kill({orphan}, 9) or os.waitpid({orphan}, 0)"), (orphan, 9))
    same("a signal for the group", ask_leader(f"os.killpg({first}, 9)"), None)
    same("which has one process", ask_leader(f"os.waitpid(-{first}, 0)"), (second, 9))
    same("and no other", ask_leader(f"os.waitpid(-{first}, 0)"), -10)
