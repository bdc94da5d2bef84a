"""Command line, environment and program of /proc, set by the program itself (PR_SET_MM)"""
import os

from case import case, fork, forever, read, same


@case
def mm_fields():
    line, environ, exe = read("/proc/self/cmdline"), read("/proc/self/environ"), os.readlink("/proc/self/exe")
    fields = read("/proc/self/stat").rsplit(")", 1)[1].split()
    # start_code, end_code, start_stack, start_data .. env_end; proc(5) counts from 1 and two fields are gone.
    places = [fields[number - 3] for number in (26, 27, 28, 45, 46, 47, 48, 49, 50, 51)]
    auxv = open("/proc/self/auxv", "rb").read()
    yield
    same("command line", read("/proc/self/cmdline"), line)
    same("environment", read("/proc/self/environ"), environ)
    same("program", os.readlink("/proc/self/exe"), exe)
    fields = read("/proc/self/stat").rsplit(")", 1)[1].split()
    same("fields of mm", [fields[number - 3] for number in (26, 27, 28, 45, 46, 47, 48, 49, 50, 51)], places)
    same("auxiliary vector", open("/proc/self/auxv", "rb").read(), auxv)
