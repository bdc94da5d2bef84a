"""Locks that lend priority (FUTEX_LOCK_PI): threads that wait for one, with a time and without, get it one after the other"""
import ctypes
import errno
import mmap
import struct
import threading
import time

from case import address_of, case, same, status, syscall, until

FUTEX, LOCK_PI, UNLOCK_PI, PRIVATE, LOCK_PI2, GETTID = 202, 6, 7, 128, 13, 186


@case
def futex_inheriting():
    memory = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    word = address_of(memory)
    syscall(FUTEX, word, LOCK_PI | PRIVATE, 0, 0, 0, 0)
    same("owner", struct.unpack_from("I", memory)[0], syscall(GETTID))
    got, tids = [], []
    end = time.time() + 4

    def waits():
        tids.append(syscall(GETTID))
        syscall(FUTEX, word, LOCK_PI | PRIVATE, 0, 0, 0, 0)
        got.append(struct.unpack_from("I", memory)[0] & 0x3FFFFFFF == syscall(GETTID))
        syscall(FUTEX, word, UNLOCK_PI | PRIVATE, 0, 0, 0, 0)

    def gives_up():
        tids.append(syscall(GETTID))
        limit = struct.pack("qq", int(end), int(end % 1 * 1e9))
        try:
            syscall(FUTEX, word, LOCK_PI | PRIVATE, 0, limit, 0, 0)
        except OSError as error:
            got.append(error.errno == errno.ETIMEDOUT and time.time() >= end)

    threads = [threading.Thread(target=work, daemon=True) for work in (waits, waits, gives_up)]
    for thread in threads:
        thread.start()
    until("they wait", lambda: len(tids) == 3 and all(status("State", f"self/task/{tid}").startswith("S") for tid in tids))
    yield
    threads[2].join()
    same("given up", got, [True])
    same("word", struct.unpack_from("I", memory)[0], syscall(GETTID) | 0x80000000)
    syscall(FUTEX, word, UNLOCK_PI | PRIVATE, 0, 0, 0, 0)
    for thread in threads:
        thread.join()
    same("got it", got, [True, True, True])
    same("free", struct.unpack_from("I", memory)[0] & 0x3FFFFFFF, 0)
