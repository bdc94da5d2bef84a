"""Memory that is written is never executed: PR_SET_MDWE"""
import mmap

from case import case, prctl, same

PR_SET_MDWE, PR_GET_MDWE, REFUSE_EXEC_GAIN = 65, 66, 1


@case
def mdwe():
    prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN)
    yield
    same("the switch", prctl(PR_GET_MDWE), REFUSE_EXEC_GAIN)
    try:
        mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC | mmap.PROT_READ)
    except PermissionError:
        return
    raise AssertionError("memory that can be written and executed was given")
