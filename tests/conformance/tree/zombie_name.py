"""The name of a child that has ended and was not waited for"""
# lost: name of the zombie
from case import case, fork, same, status, until


@case
def zombie_name():
    pid = fork(lambda: None)
    until("its end", lambda: status("State", pid).startswith("Z"))
    name = status("Name")
    yield
    same("name of the zombie", status("Name", pid), name)
