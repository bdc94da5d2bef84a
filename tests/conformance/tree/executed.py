"""A child that runs another program"""
import os
import subprocess

from case import case, read, same


@case
def executed():
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"OF": "its own"})
    while not read(f"/proc/{child.pid}/cmdline").startswith("cat\0"):
        pass
    before = [read(f"/proc/{child.pid}/{name}") for name in ("cmdline", "environ", "comm")]
    program = os.readlink(f"/proc/{child.pid}/exe")
    yield
    same("names", [read(f"/proc/{child.pid}/{name}") for name in ("cmdline", "environ", "comm")], before)
    same("program", os.readlink(f"/proc/{child.pid}/exe"), program)
    same("output", child.communicate(b"through it", 20)[0], b"through it")
    same("end", child.returncode, 0)
