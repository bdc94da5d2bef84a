"""Scheduling policies: batch and idle, and what children get (SCHED_RESET_ON_FORK)"""
import os
import threading

from case import case, same


@case
def policy():
    tid, done, set_ = [], threading.Event(), threading.Event()

    def thread():
        tid.append(threading.get_native_id())
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        set_.set()
        done.wait()

    threading.Thread(target=thread, daemon=True).start()
    set_.wait()
    os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
    yield
    same("batch", os.sched_getscheduler(0), os.SCHED_BATCH | os.SCHED_RESET_ON_FORK)
    same("idle", os.sched_getscheduler(tid[0]), os.SCHED_IDLE)
