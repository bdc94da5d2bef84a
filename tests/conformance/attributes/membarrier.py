"""Registrations for barriers of memory across threads (membarrier), of a process and of a child with others"""
import os

from case import case, forever, fork, same, syscall

MEMBARRIER = 324
GLOBAL_EXPEDITED, REGISTER_GLOBAL = 1 << 1, 1 << 2
PRIVATE, REGISTER_PRIVATE = 1 << 3, 1 << 4
PRIVATE_CORE, REGISTER_PRIVATE_CORE = 1 << 5, 1 << 6
PRIVATE_RSEQ, REGISTER_PRIVATE_RSEQ = 1 << 7, 1 << 8
GET_REGISTRATIONS = 1 << 9


def registrations():
    return syscall(MEMBARRIER, GET_REGISTRATIONS, 0, 0)


@case
def membarrier():
    (ask, asked), (answer, answered) = os.pipe(), os.pipe()

    def child():
        syscall(MEMBARRIER, REGISTER_PRIVATE_RSEQ, 0, 0)
        os.write(answered, b"%d\n" % registrations())
        os.read(ask, 1)
        syscall(MEMBARRIER, PRIVATE_RSEQ, 0, 0)
        os.write(answered, b"%d\n" % registrations())
        forever()

    before = registrations()
    fork(child)
    of_child = os.read(answer, 64)
    syscall(MEMBARRIER, REGISTER_PRIVATE, 0, 0)
    syscall(MEMBARRIER, REGISTER_PRIVATE_CORE, 0, 0)
    syscall(MEMBARRIER, REGISTER_GLOBAL, 0, 0)
    own = registrations()
    same("registered", own & ~before, REGISTER_PRIVATE | REGISTER_PRIVATE_CORE | REGISTER_GLOBAL)
    yield
    same("registrations", registrations(), own)
    syscall(MEMBARRIER, PRIVATE, 0, 0)
    syscall(MEMBARRIER, PRIVATE_CORE, 0, 0)
    os.write(asked, b"?")
    same("of the child", os.read(answer, 64), of_child)
