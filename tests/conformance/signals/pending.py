"""Signals that wait, for the process and for a thread, with what was sent along and in their order"""
import ctypes
import os
import signal
import struct
import threading

from case import case, same, syscall

QUEUEINFO, TGSIGQUEUEINFO = 129, 297
SI_QUEUE = -1


def info(number, value):
    head = struct.pack("=iiiiiiQ", number, 0, SI_QUEUE, 0, os.getpid(), os.getuid(), value)
    return ctypes.create_string_buffer(head, 128)


@case
def pending():
    first, second = signal.SIGRTMIN + 3, signal.SIGRTMIN + 4
    signal.pthread_sigmask(signal.SIG_BLOCK, {first, second, signal.SIGUSR1})
    tid, go, found, set_ = [], threading.Event(), [], threading.Event()

    def take(numbers):
        taken = []
        while True:
            got = signal.sigtimedwait(numbers, 0)
            if got is None:
                return taken
            taken.append((got.si_signo, got.si_code, got.si_pid))

    def thread():
        tid.append(threading.get_native_id())
        set_.set()
        go.wait()
        found.extend(take({second}))

    worker = threading.Thread(target=thread, daemon=True)
    worker.start()
    set_.wait()
    sent = [0]

    def change():
        if sent[0] < 40:
            sent[0] += 1
            block = info(first, sent[0])
            syscall(QUEUEINFO, os.getpid(), first, ctypes.addressof(block))

    for value in (7, 8, 9):
        block = info(second, value)
        syscall(TGSIGQUEUEINFO, os.getpid(), tid[0], second, ctypes.addressof(block))
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    change()
    yield change
    own = os.getpid()
    go.set()
    worker.join()
    same("of the thread", found, [(second, SI_QUEUE, own)] * 3)
    same("of the process", take({first}), [(first, SI_QUEUE, own)] * sent[0])
    same("SIGUSR1 once", len(take({signal.SIGUSR1})), 1)
