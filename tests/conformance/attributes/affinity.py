"""CPUs that each thread may run on"""
import os
import threading

from case import case, same


@case
def affinity():
    last = max(os.sched_getaffinity(0))
    wanted, tids, done = {}, [], threading.Event()

    def thread(cpus):
        os.sched_setaffinity(0, cpus)
        wanted[threading.get_native_id()] = cpus
        tids.append(1)
        done.wait()

    for cpus in ({0}, {last}):
        threading.Thread(target=thread, args=(cpus,), daemon=True).start()
    while len(tids) < 2:
        pass
    yield
    for tid, cpus in wanted.items():
        same(f"of thread {tid}", os.sched_getaffinity(tid), cpus)
