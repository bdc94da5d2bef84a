"""Offsets: each description its own, one shared after dup() and after fork()"""
import os

from case import case, fork, forever, same, scratch


@case
def offsets():
    with open(scratch("data"), "wb") as file:
        file.write(bytes(range(200)))
    one = os.open(scratch("data"), os.O_RDWR)
    two = os.open(scratch("data"), os.O_RDONLY)
    dup = os.dup(one)
    ask, told = os.pipe()

    def child():
        os.read(ask, 1)
        os.lseek(one, 7, os.SEEK_CUR)
        forever()

    fork(child)
    os.lseek(one, 100, os.SEEK_SET)
    os.lseek(two, 33, os.SEEK_SET)
    yield
    same("one", os.lseek(one, 0, os.SEEK_CUR), 100)
    same("two", os.read(two, 1), b"\x21")
    os.write(told, b"x")
    while os.lseek(dup, 0, os.SEEK_CUR) != 107:
        os.sched_yield()
    same("after the child moved it", os.read(one, 1), b"\x6b")
