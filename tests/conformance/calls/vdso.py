"""A thread that reads the clock through the vDSO without pause"""
import threading
import time

from case import case


@case
def vdso():
    state = {"last": 0, "count": 0, "back": 0}
    stop = threading.Event()

    def work():
        while not stop.is_set():
            for _ in range(1000):
                now = time.perf_counter_ns()
                state["back"] += now < state["last"]
                state["last"] = now
            state["count"] += 1

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    yield
    before = state["count"]
    end = time.monotonic() + 10
    while state["count"] < before + 3 and time.monotonic() < end:
        time.sleep(0.001)
    assert state["count"] >= before + 3 and not state["back"], state
    stop.set()
    worker.join()
