"""Two threads that stream to each other all the time"""
import threading

from case import case, same, tcp_pair


@case
def streaming():
    left, right = tcp_pair()
    stop, results = threading.Event(), []

    def send():
        at = 0
        while not stop.is_set():
            left.sendall(b"".join((at + more).to_bytes(8, "little") for more in range(512)))
            at += 512
        left.sendall(bytes(8))
        results.append(at)

    def receive():
        at, rest = 0, b""
        while True:
            rest += right.recv(65536)
            while len(rest) >= 8:
                number, rest = int.from_bytes(rest[:8], "little"), rest[8:]
                if number == 0 and at:
                    results.append(at)
                    return
                if number != at:
                    results.append(f"{number} came instead of {at}")
                    return
                at += 1

    threads = [threading.Thread(target=work, daemon=True) for work in (send, receive)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join(20)
    same("both count the same", (len(results), len(set(results))), (2, 1))
