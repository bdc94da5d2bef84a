"""Guard pages (MADV_GUARD_INSTALL)"""
import ctypes
import mmap
import os
import signal

from case import address_of, case, same, syscall

PAGE = mmap.PAGESIZE


@case
def guard():
    memory = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = address_of(memory)
    memory[0] = memory[40 * PAGE] = 1
    # MADV_GUARD_INSTALL
    syscall(28, address + 8 * PAGE, 2 * PAGE, 102)
    yield
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.memset(address + 8 * PAGE, 1, 1)
        os._exit(0)
    same("touched, it ends with", os.waitpid(pid, 0)[1] & 127, int(signal.SIGSEGV))
