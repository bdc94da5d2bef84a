"""Five hundred threads, each with memory of its own (thread-local) and a number"""
import os
import threading

from case import case, same, syscall


@case
def threads():
    local, go, found = threading.local(), threading.Event(), {}

    def thread(number):
        local.number = number
        before = threading.get_native_id()
        started.release()
        go.wait()
        # gettid(2), and what python remembers of it.
        found[number] = (local.number, threading.get_native_id() == before, syscall(186) == before)

    started = threading.Semaphore(0)
    threading.stack_size(65536)
    workers = [threading.Thread(target=thread, args=(number,), daemon=True) for number in range(500)]
    for worker in workers:
        worker.start()
    for _ in workers:
        started.acquire()
    yield
    same("threads", len(os.listdir("/proc/self/task")), 501)
    go.set()
    for worker in workers:
        worker.join(20)
    same("each", found, {number: (number, True, True) for number in range(500)})
