"""Personality: no address randomisation, compatible layout"""
from case import case, same, syscall

PERSONALITY, QUERY = 135, 0xFFFFFFFF
ADDR_NO_RANDOMIZE, ADDR_COMPAT_LAYOUT, UNAME26 = 0x0040000, 0x0200000, 0x0020000


@case
def personality():
    wanted = ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT | UNAME26
    syscall(PERSONALITY, wanted)
    yield
    same("personality", syscall(PERSONALITY, QUERY), wanted)
