"""Mitigations that a thread asked for (PR_SET_SPECULATION_CTRL)"""
from case import case, prctl, same

GET, SET, DISABLE, FORCE_DISABLE, PRCTL = 52, 53, 4, 8, 1


@case
def speculation():
    wanted = {}
    # Store bypass, indirect branches, L1D flush.
    for which in (0, 1, 2):
        try:
            if prctl(GET, which) & PRCTL:
                prctl(SET, which, DISABLE)
                wanted[which] = prctl(GET, which)
        except OSError:
            pass
    yield
    for which, value in wanted.items():
        same(f"of {which}", prctl(GET, which), value)
