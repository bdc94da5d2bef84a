"""Processes that share a descriptor table (CLONE_FILES): a child, its child, an orphan, and two that share another"""
import fcntl
import os
import select
import signal
import struct

from case import case, clone, fork, prctl, same, scratch, syscall, until

KCMP, KCMP_FILES, CLONE_FILES = 312, 2, 0x400


def make(flags, orphan=False):
    """A child that evaluates what it is asked; its pid and the asking. Nobody closes an end: it may be everybody's."""
    go, back, told = os.pipe(), os.pipe(), os.pipe()

    def serve():
        os.write(told[1], str(os.getpid()).encode())
        while True:
            text = os.read(go[0], 4096).decode()
            try:
                value = eval(text, globals())
            except OSError as error:
                value = -error.errno
            os.write(back[1], repr(value).encode())

    if orphan:
        os.waitpid(clone(flags, lambda: clone(flags, serve)), 0)
    else:
        clone(flags, serve)
    pid = int(os.read(told[0], 20))

    def ask(text):
        os.write(go[1], text.encode())
        return eval(os.read(back[0], 1 << 16))

    return pid, ask


MADE = {}


def keep(name, flags):
    """Makes one that is a child of whoever evaluates this; asked through it."""
    MADE[name] = make(flags)
    return MADE[name][0]


def share(one, other):
    return syscall(KCMP, one, other, KCMP_FILES, 0, 0) == 0


def where(fd):
    return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))


def lock(fd):
    return fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 4, 2)


def holder(fd):
    asked = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    kind, _, start, length, pid = struct.unpack("hhqqi4x", asked)
    return (start, length, pid) if kind != fcntl.F_UNLCK else None


@case
def table_shared():
    for name in "one", "two", "locked":
        with open(scratch(name), "w") as file:
            file.write(name)
    # PR_SET_CHILD_SUBREAPER: the orphan stays here.
    prctl(36, 1)
    child, ask = make(CLONE_FILES)
    below = ask(f"keep('below', {CLONE_FILES})")
    orphan, ask_orphan = make(CLONE_FILES, True)
    other, ask_other = make(0)
    twin = ask_other(f"keep('twin', {CLONE_FILES})")
    me = os.getpid()
    fd = ask(f"os.dup2(os.open({scratch('one')!r}, os.O_RDWR), 77)")
    spare = os.open(scratch("two"), os.O_RDONLY)
    locked = os.open(scratch("locked"), os.O_RDWR)
    own = ask_other(f"os.dup2(os.open({scratch('locked')!r}, os.O_RDWR), 78)")
    ask(f"lock({locked})")
    epoll, (reader, writer) = select.epoll(), os.pipe()
    epoll.register(reader, select.EPOLLIN)
    mine = [child, below, orphan]

    def shared():
        pids = [me, *mine, other, twin]
        return [[share(one, two) for two in pids] for one in pids]

    wanted = [[(one < 4) == (two < 4) for two in range(6)] for one in range(6)]
    same("before", shared(), wanted)
    turn, more = [0], []

    def change():
        """Numbers change under one that another gave, and one that shares comes and goes."""
        turn[0] += 1
        ask(f"os.dup2({fd if turn[0] % 2 else spare}, 79, inheritable={turn[0] % 3 == 0})")
        if turn[0] % 8 == 0:
            while more:
                os.kill(more[0], signal.SIGKILL)
                os.waitpid(more.pop(), 0)
            more.append(clone(CLONE_FILES, signal.pause))

    yield change
    same("shared", shared(), wanted)
    same("parents", [ppid(pid) for pid in (child, below, orphan, other, twin)], [me, child, me, me, other])
    if turn[0]:
        same("the last change", (where(79), os.get_inheritable(79)), ("one" if turn[0] % 2 else "two", turn[0] % 3 == 0))
    same("one that came", [share(me, pid) for pid in more], [True] * len(more))
    same("of the other table", ask_other("where(77)"), -2)
    for name, answer in ("child", ask("where(77)")), ("orphan", ask_orphan("where(77)")), ("here", where(77)):
        same(f"the {name}'s", answer, "one")
    opened = ask_orphan(f"os.dup2(os.open({scratch('two')!r}, os.O_RDONLY), 90)")
    same("opened by the orphan", (where(opened), ask("where(90)"), ask("MADE['below'][1]('where(90)')")), ("two",) * 3)
    os.set_inheritable(90, True)
    same("inheritable", ask("os.get_inheritable(90)"), True)
    os.close(90)
    same("closed here", ask("where(90)"), -2)
    same("lock", (ask_other(f"holder({own})"), ask_other(f"lock({own})")), ((2, 4, child), -11))
    # The lock is the table's.
    fcntl.lockf(locked, fcntl.LOCK_UN, 4, 2)
    same("unlocked here", ask_other("MADE['twin'][1]('lock(78)')"), None)
    same("by another table", ask(f"lock({locked})"), -11)
    same("by the same", ask_other(f"lock({own})"), None)
    same("nothing is ready", epoll.poll(0), [])
    ask_orphan(f"os.write({writer}, b'x')")
    same("ready", epoll.poll(5), [(reader, select.EPOLLIN)])
    plain = fork(signal.pause)
    same("a new child", (share(me, plain), share(child, clone(CLONE_FILES, signal.pause))), (False, True))
    until("the end of the child", lambda: os.kill(child, signal.SIGKILL) or os.waitpid(child, 0))
    same("after its end", (ask_orphan("where(77)"), where(77)), ("one",) * 2)


def ppid(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rsplit(")", 1)[1].split()[1])
