"""FD_CLOEXEC, which each descriptor has for itself"""
import os

from case import case, same, scratch


@case
def cloexec():
    one = os.open(scratch("data"), os.O_CREAT | os.O_RDWR)
    two = os.dup(one)
    os.set_inheritable(two, True)
    yield
    same("first", os.get_inheritable(one), False)
    same("second", os.get_inheritable(two), True)
    os.lseek(one, 9, os.SEEK_SET)
    same("still one description", os.lseek(two, 0, os.SEEK_CUR), 9)
