"""Children in IPC namespaces without objects: two in one, one with another limit"""
# with: CAP_SYS_ADMIN
import os

from case import case, fork, read, same, syscall

NEW = 0x8000000
LIMITS = ["kernel/shmmni", "kernel/msgmnb", "kernel/sem", "fs/mqueue/msg_max"]


@case
def namespace_ipc():
    reader, writer = os.pipe()

    def make(enter):
        go, ask = os.pipe()
        answer, back = os.pipe()

        def child():
            enter()
            os.write(writer, b"x")
            while True:
                word = os.read(go, 1)
                if word == b"s":
                    # shmget: a new segment
                    os.write(back, b"%d" % syscall(29, 4711, 8192, 0o1600))
                elif word == b"g":
                    try:
                        os.write(back, b"%d" % syscall(29, 4711, 0, 0))
                    except OSError as error:
                        os.write(back, b"-%d" % error.errno)
                elif word == b"r":
                    os.write(back, b"%d" % syscall(31, syscall(29, 4711, 0, 0), 0, 0))
                else:
                    values = (" ".join(read(f"/proc/sys/{name}").split()) for name in LIMITS)
                    os.write(back, "/".join(values).encode())

        pid = fork(child)
        os.read(reader, 1)

        def say(word=b"?"):
            os.write(ask, word)
            return os.read(answer, 200).decode()

        return pid, say

    def fresh(limits):
        def enter():
            syscall(272, NEW)
            for name, value in limits:
                try:
                    with open(f"/proc/sys/{name}", "w") as file:
                        file.write(value)
                except OSError as error:
                    # A container's /proc/sys is read-only.
                    assert error.errno == 30, error

        return enter

    def join(pid):
        def enter():
            fd = os.open(f"/proc/{pid}/ns/ipc", os.O_RDONLY)
            syscall(308, fd, NEW)
            os.close(fd)

        return enter

    first, ask_first = make(fresh(zip(LIMITS, ["77", "20000", "100 2000 50 12", "33"])))
    second, ask_second = make(join(first))
    third, ask_third = make(fresh([]))
    before = [ask() for ask in (ask_first, ask_second, ask_third)]
    assert before[0] == before[1]

    def links():
        return [os.readlink(f"/proc/{pid}/ns/ipc") for pid in (first, second, third, os.getpid())]

    a, b, c, d = links()
    assert a == b and len({a, c, d}) == 3, "they are not as they were to be"
    yield
    same("limits", [ask() for ask in (ask_first, ask_second, ask_third)], before)
    a, b, c, d = links()
    same("shared", (a == b, len({a, c, d})), (True, 3))
    made = ask_first(b"s")
    same("a segment of the first is the second's", ask_second(b"g"), made)
    same("and not the third's", ask_third(b"g"), "-2")
    same("removed", ask_second(b"r"), "0")
