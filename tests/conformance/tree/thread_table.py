"""Threads with descriptor tables of their own, alone and shared: numbers, close-on-exec, an epoll set, a lock"""
import fcntl
import os
import select
import struct

from case import Asked, case, fork, same, scratch, syscall

UNSHARE, CLONE_FILES = 272, 0x400


def table():
    """What this thread's descriptors lead to."""
    found = {}
    for name in os.listdir("/proc/thread-self/fd"):
        try:
            target = os.readlink(f"/proc/thread-self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith(scratch("")):
            found[int(name)] = os.path.basename(target)
    return found


@case
def thread_table():
    for name in "common", "first", "second", "third", "locked":
        with open(scratch(name), "w") as file:
            file.write(name)
    os.dup2(os.open(scratch("common"), os.O_RDONLY), 40)

    def leave(name):
        syscall(UNSHARE, CLONE_FILES)
        os.close(40)
        file = os.open(scratch(name), os.O_RDWR)
        os.dup2(file, 40)
        os.set_inheritable(os.dup2(file, 300), True)
        os.close(file)

    plain, first, second = Asked(), Asked(lambda: leave("first")), Asked(lambda: leave("second"))
    twin = second.ask(Asked)
    threads = [plain, first, second, twin]
    reader, writer = os.pipe()
    # The set, what it watches and the lock are of one thread's table alone.
    sets, pipes = [], []

    def set_up():
        pipes.append(os.pipe())
        sets.append(select.epoll())
        sets[0].register(pipes[0][0], select.EPOLLIN)
        os.dup2(os.open(scratch("locked"), os.O_RDWR), 301)
        fcntl.lockf(301, fcntl.LOCK_EX, 5, 10)

    first.ask(set_up)

    def holder():
        """Whom another process finds to hold the lock."""
        end, begin = os.pipe()

        def child():
            with open(scratch("locked"), "r+") as file:
                asked = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
            os.write(begin, asked)

        os.waitpid(fork(child), 0)
        kind, _, start, length, pid = struct.unpack("hhqqi4x", os.read(end, 99))
        os.close(end)
        os.close(begin)
        return kind, start, length, pid

    held = (fcntl.F_WRLCK, 10, 5, os.getpid())
    turn = [0]

    def change():
        turn[0] += 1
        number = 310 + turn[0] % 5
        for thread, name in (first, "first"), (twin, "second"):
            thread.ask(lambda: os.close(os.dup2(os.open(scratch("third"), os.O_RDONLY), number)))
            thread.ask(lambda: [os.close(fd) for fd, name in table().items() if name == "third"])
            thread.ask(lambda: os.dup2(40, number, inheritable=turn[0] % 2 == 0))

    def all_of_them():
        return [thread.ask(table) for thread in threads]

    before = all_of_them()
    same("of the plain one", before[0][40], "common")
    assert before[1][40] == "first" and before[2][40] == before[3][40] == "second", before
    same("lock", holder(), held)
    yield change
    if turn[0]:
        flags = [thread.ask(lambda: os.get_inheritable(310 + turn[0] % 5)) for thread in (first, second, twin)]
        same("inherited", flags, [turn[0] % 2 == 0] * 3)
    found = all_of_them()
    for mine in found:
        for number in range(310, 315):
            mine.pop(number, None)
    same("tables", found, before)
    same("the process's", (table()[40], 300 in table(), 301 in table()), ("common", False, False))
    same("inherited", [thread.ask(lambda: os.get_inheritable(300)) for thread in threads[1:]], [True] * 3)
    same("contents", first.ask(lambda: os.pread(300, 9, 0)), b"first")
    same("shared description", first.ask(lambda: os.lseek(300, 3, 0) and os.lseek(40, 0, 1)), 3)
    same("lock", holder(), held)
    same("nothing is ready", first.ask(lambda: sets[0].poll(0)), [])
    first.ask(lambda: os.write(pipes[0][1], b"x"))
    same("ready", first.ask(lambda: sets[0].poll(5)), [(pipes[0][0], select.EPOLLIN)])
    second.ask(lambda: os.close(300))
    same("closed for both", [300 in thread.ask(table) for thread in (second, twin, first)], [False, False, True])
    # The table that holds it is the first one's.
    first.ask(lambda: os.close(os.open(scratch("locked"), os.O_RDONLY)))
    same("the lock is gone", holder()[0], fcntl.F_UNLCK)
    os.write(writer, b"x")
    same("the process's pipe", (os.read(reader, 1), plain.ask(lambda: os.fstat(writer).st_ino)), (b"x", os.fstat(reader).st_ino))
