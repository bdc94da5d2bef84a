"""Files and a parent directory that are renamed while they are open and copied"""
import os

from case import case, same, scratch


@case
def renamed():
    os.mkdir(scratch("dir0"))
    fd = os.open(scratch("dir0/file0"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"here")
    directory = os.open(scratch("dir0"), os.O_RDONLY)
    count = 0

    def change():
        nonlocal count
        count += 1
        os.rename(scratch(f"dir{count - 1}"), scratch(f"dir{count}"))
        os.rename(scratch(f"dir{count}/file{count - 1}"), scratch(f"dir{count}/file{count}"))

    change()
    yield change
    same("content", os.pread(fd, 10, 0), b"here")
    same("names", (os.listdir(scratch(".")), os.listdir(directory)), ([f"dir{count}"], [f"file{count}"]))
    os.pwrite(fd, b"t", 0)
    same("by its name", open(scratch(f"dir{count}/file{count}"), "rb").read(), b"tere")
