"""Children in UTS namespaces: two in one, one in another, with names of their own"""
# with: CAP_SYS_ADMIN
import ctypes
import os

from case import case, fork, libc, same, syscall

NEW = 0x4000000


def names():
    uname = os.uname()
    domain = ctypes.create_string_buffer(65)
    assert libc.getdomainname(domain, 65) == 0
    return uname.nodename, domain.value.decode()


@case
def namespace_uts():
    reader, writer = os.pipe()
    before = names()

    def serve(go, back):
        """Says its names whenever it is asked; "N" sets one first."""
        while True:
            word = os.read(go, 1)
            if word == b"n":
                syscall(170, b"changed", 7)
            os.write(back, "/".join(names()).encode().ljust(64))

    def make(enter):
        go, ask = os.pipe()
        answer, back = os.pipe()

        def child():
            enter()
            os.write(writer, b"x")
            serve(go, back)

        pid = fork(child)
        os.read(reader, 1)

        def say(word=b"?"):
            os.write(ask, word)
            return os.read(answer, 64).decode().strip()

        return pid, say

    def fresh(host, domain):
        def enter():
            syscall(272, NEW)
            syscall(170, host, len(host))
            syscall(171, domain, len(domain))

        return enter

    def join(pid):
        def enter():
            fd = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY)
            syscall(308, fd, NEW)
            os.close(fd)

        return enter

    first, ask_first = make(fresh(b"inner", b"domain.of.it"))
    second, ask_second = make(join(first))
    third, ask_third = make(fresh("größer".encode(), b""))
    plain, ask_plain = make(lambda: None)

    def links():
        return [os.readlink(f"/proc/{pid}/ns/uts") for pid in (first, second, third, plain, os.getpid())]

    a, b, c, d, e = links()
    assert a == b and len({a, c, e}) == 3 and d == e, "they are not as they were to be"
    yield
    same("the first one's", ask_first(), "inner/domain.of.it")
    same("the second one's", ask_second(), "inner/domain.of.it")
    same("the third one's", ask_third(), "größer/")
    same("the plain one's", ask_plain(), "/".join(before))
    a, b, c, d, e = links()
    same("shared", (a == b, d == e), (True, True))
    same("namespaces", len({a, c, e}), 3)
    same("a change by the second", ask_second(b"n"), "changed/domain.of.it")
    same("seen by the first", ask_first(), "changed/domain.of.it")
    same("not by the third", ask_third(), "größer/")
    same("not here", names(), before)
