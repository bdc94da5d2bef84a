"""A deleted file whose name is another file's by now"""
import os

from case import case, same, scratch


@case
def deleted_name_taken():
    fd = os.open(scratch("config"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"old")
    with open(scratch("new"), "wb") as file:
        file.write(b"new one")
    os.rename(scratch("new"), scratch("config"))
    yield
    same("old", os.pread(fd, 10, 0), b"old")
    same("new", open(scratch("config"), "rb").read(), b"new one")
    same("in the directory", sorted(os.listdir(scratch("."))), ["config"])
