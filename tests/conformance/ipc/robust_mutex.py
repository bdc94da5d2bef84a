"""A robust mutex in shared memory, held by a child that is killed later; another one with priority inheritance"""
import ctypes
import errno
import mmap
import os
import signal

from case import address_of, case, forever, fork, libc, same, until


@case
def robust_mutex():
    memory = mmap.mmap(-1, 4096, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    address = address_of(memory)
    attribute = ctypes.create_string_buffer(64)
    # PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST
    libc.pthread_mutexattr_init(attribute)
    libc.pthread_mutexattr_setpshared(attribute, 1)
    libc.pthread_mutexattr_setrobust(attribute, 1)
    robust, inheriting = ctypes.c_void_p(address), ctypes.c_void_p(address + 128)
    libc.pthread_mutex_init(robust, attribute)
    # PTHREAD_PRIO_INHERIT
    libc.pthread_mutexattr_setprotocol(attribute, 1)
    libc.pthread_mutex_init(inheriting, attribute)

    def child():
        libc.pthread_mutex_lock(robust)
        libc.pthread_mutex_lock(inheriting)
        memory[512] = 1
        forever()

    pid = fork(child)
    until("the child", lambda: memory[512])
    yield
    for mutex in (robust, inheriting):
        same("held", libc.pthread_mutex_trylock(mutex), errno.EBUSY)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for mutex in (robust, inheriting):
        same("its owner died", libc.pthread_mutex_trylock(mutex), errno.EOWNERDEAD)
