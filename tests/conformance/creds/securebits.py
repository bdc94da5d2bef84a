"""securebits, with locks, and no_new_privs"""
# not: move: a container has no CAP_SETPCAP
from case import case, prctl, same, status


@case
def securebits():
    # NOROOT and its lock, KEEP_CAPS.
    prctl(28, 0b1_0011)
    prctl(38, 1)
    yield
    same("securebits", prctl(27), 0b1_0011)
    same("no_new_privs", (prctl(39), status("NoNewPrivs")), (1, "1"))
