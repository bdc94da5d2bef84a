"""Processes whose working directory was removed, one of them with it open as well"""
import os

from case import case, fork, same, scratch


@case
def deleted_working_directory():
    os.makedirs(scratch("gone/below"))
    told, tell = os.pipe()
    go, start = os.pipe()

    def of_a_child():
        os.chdir(scratch("gone/below"))
        fd = os.open(".", os.O_RDONLY)
        os.write(tell, b"x")
        os.read(go, 1)
        same("in it", os.listdir("."), [])
        same("the same", os.path.samestat(os.stat("."), os.fstat(fd)), True)
        same("above", os.path.samestat(os.stat(".."), os.stat(".")), False)

    child = fork(of_a_child)
    os.read(told, 1)
    os.chdir(scratch("gone"))
    os.rmdir("below")
    os.rmdir(scratch("gone"))
    yield
    same("cwd", os.readlink("/proc/self/cwd"), scratch("gone") + " (deleted)")
    try:
        os.getcwd()
        assert False, "it has a name"
    except FileNotFoundError:
        pass
    same("cwd of the child", os.readlink(f"/proc/{child}/cwd"), scratch("gone/below") + " (deleted)")
    same("mode", os.stat(".").st_nlink, 0)
    os.write(start, b"x")
    same("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
    os.chdir(scratch(""))
