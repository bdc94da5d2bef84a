"""Threads that share a working directory and a umask with each other, but not with their process"""
import os

from case import Asked, case, same, scratch, syscall

UNSHARE, CLONE_FS = 272, 0x200


@case
def thread_directory_shared():
    for name in "one", "two", "three", "process":
        os.makedirs(scratch(name))
    os.chdir(scratch("process"))

    def leave(name):
        syscall(UNSHARE, CLONE_FS)
        os.chdir(scratch(name))

    def where():
        mask = os.umask(0)
        os.umask(mask)
        return os.path.basename(os.getcwd()), mask

    plain, one, other = Asked(), Asked(lambda: leave("one")), Asked(lambda: leave("two"))
    # A thread has the directories of the one that makes it.
    twin, third = one.ask(Asked), one.ask(Asked)
    other_twin = other.ask(Asked)
    left = one.ask(Asked)
    left.ask(lambda: syscall(UNSHARE, CLONE_FS))
    threads = [plain, one, twin, third, other, other_twin, left]
    one.ask(lambda: os.umask(0o077))
    wanted = [("process", 0o022), *[("one", 0o077)] * 3, *[("two", 0o022)] * 2, ("one", 0o022)]
    os.umask(0o022)

    def all_of_them():
        return [thread.ask(where) for thread in threads]

    same("before", all_of_them(), wanted)
    turn = [0]

    def change():
        turn[0] += 1
        wanted[1:4] = [("one" if turn[0] % 2 else "three", turn[0] & 0o77)] * 3
        [twin, third][turn[0] % 2].ask(lambda: (os.chdir(scratch(wanted[1][0])), os.umask(wanted[1][1])))

    yield change
    same("directories and masks", all_of_them(), wanted)
    third.ask(lambda: os.chdir(scratch("three")))
    other.ask(lambda: os.umask(0o007))
    left.ask(lambda: os.chdir(scratch("process")))
    mask = wanted[1][1]
    wanted[1:] = [*[("three", mask)] * 3, *[("two", 0o007)] * 2, ("process", 0o022)]
    same("after changes", all_of_them(), wanted)
    os.chdir(scratch("one"))
    wanted[0] = ("one", 0o022)
    same("after one of the process", all_of_them(), wanted)
