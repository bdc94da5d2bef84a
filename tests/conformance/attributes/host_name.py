"""Names of the host and of its domain, changed while the program runs"""
# not: host: it would rename the machine
# with: CAP_SYS_ADMIN
import ctypes
import os

from case import case, libc, same, syscall

SETHOSTNAME, SETDOMAINNAME, UNSHARE, NEWUTS = 170, 171, 272, 0x4000000
# The number of the namespace that the kernel begins with (PROC_UTS_INIT_INO).
OF_THE_MACHINE = "uts:[4026531838]"


def names():
    domain = ctypes.create_string_buffer(65)
    assert libc.getdomainname(domain, 65) == 0
    return os.uname().nodename, domain.value.decode()


@case
def host_name():
    if os.readlink("/proc/self/ns/uts") == OF_THE_MACHINE:
        syscall(UNSHARE, NEWUTS)
    turn = [0]

    def change():
        turn[0] += 1
        for number, name in ((SETHOSTNAME, b"host-%d" % turn[0]), (SETDOMAINNAME, b"domain-%d" % turn[0])):
            syscall(number, name, len(name))

    change()
    yield change
    same("names", names(), (f"host-{turn[0]}", f"domain-{turn[0]}"))
