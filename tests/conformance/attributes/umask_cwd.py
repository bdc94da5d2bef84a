"""umask and working directory"""
import os

from case import case, same, scratch


@case
def umask_cwd():
    for name in ("one", "two"):
        os.mkdir(scratch(name))
    at = [0]

    def change():
        at[0] ^= 1
        os.chdir(scratch(("one", "two")[at[0]]))

    os.umask(0o137)
    change()
    yield change
    same("directory", os.getcwd(), scratch(("one", "two")[at[0]]))
    os.close(os.open("new", os.O_CREAT | os.O_WRONLY, 0o777))
    same("mode of a new file", os.stat("new").st_mode & 0o777, 0o640)
