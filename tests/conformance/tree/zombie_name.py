"""The name of a child that has ended and was not waited for"""
from case import case, fork, same, status, until


@case
def zombie_name():
    pid = fork(lambda: open("/proc/self/comm", "w").write("an odd name"))
    until("its end", lambda: status("State", pid).startswith("Z"))
    name = status("Name", pid)
    yield
    same("name of the zombie", status("Name", pid), name)
