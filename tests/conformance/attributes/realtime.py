"""Realtime policies and their priorities"""
# not: move: a container has no CAP_SYS_NICE
import os
import threading

from case import case, same


@case
def realtime():
    found, done = {}, threading.Event()

    def thread(policy, priority):
        os.sched_setscheduler(0, policy, os.sched_param(priority))
        found[threading.get_native_id()] = (policy, priority)
        done.wait()

    for policy, priority in ((os.SCHED_FIFO, 3), (os.SCHED_RR, 2)):
        threading.Thread(target=thread, args=(policy, priority), daemon=True).start()
    while len(found) < 2:
        pass
    yield
    for tid, expected in found.items():
        same("policy and priority", (os.sched_getscheduler(tid), os.sched_getparam(tid).sched_priority), expected)
