"""Timer slack of each thread, and the one that new threads get"""
import threading

from case import case, prctl, same

PR_SET_TIMERSLACK, PR_GET_TIMERSLACK = 29, 30


@case
def timer_slack():
    slack = [70_000]
    go, found = threading.Event(), []

    def thread():
        prctl(PR_SET_TIMERSLACK, 123_456)
        go.wait()
        found.append(prctl(PR_GET_TIMERSLACK))
        # 0 is back to what it inherited.
        prctl(PR_SET_TIMERSLACK, 0)
        found.append(prctl(PR_GET_TIMERSLACK))

    inherited = prctl(PR_GET_TIMERSLACK)
    worker = threading.Thread(target=thread, daemon=True)
    worker.start()

    def change():
        slack[0] = 60_000 + (slack[0] + 1) % 20_000
        prctl(PR_SET_TIMERSLACK, slack[0])

    change()
    yield change
    same("its own", prctl(PR_GET_TIMERSLACK), slack[0])
    go.set()
    worker.join()
    same("of the thread", found, [123_456, inherited])
