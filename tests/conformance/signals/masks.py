"""What each thread blocks"""
import signal
import threading

from case import case, same


@case
def masks():
    go, found, ready = threading.Event(), {}, []

    def thread(blocked):
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        ready.append(1)
        go.wait()
        found[frozenset(blocked)] = signal.pthread_sigmask(signal.SIG_BLOCK, [])

    sets = [{signal.SIGUSR1, signal.SIGUSR2}, {signal.SIGUSR2, signal.SIGRTMAX, signal.SIGTERM}]
    workers = [threading.Thread(target=thread, args=(blocked,), daemon=True) for blocked in sets]
    for worker in workers:
        worker.start()
    while len(ready) < 2:
        pass
    own = [{signal.SIGUSR2}]

    def change():
        own[0] = {signal.SIGUSR2, signal.SIGRTMIN + len(own[0]) % 7, signal.SIGHUP} | set(list(own[0])[:3])
        signal.pthread_sigmask(signal.SIG_SETMASK, own[0])

    change()
    yield change
    same("of the first thread", signal.pthread_sigmask(signal.SIG_BLOCK, []), own[0])
    go.set()
    for worker in workers:
        worker.join()
    for blocked in sets:
        same("of a thread", found[frozenset(blocked)], blocked)
