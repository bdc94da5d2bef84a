"""A thread that waits in recv with a time limit (SO_RCVTIMEO)"""
import socket
import struct
import threading
import time

from case import case, same, tcp_pair


@case
def timeout():
    left, right = tcp_pair()
    ends = []
    right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 8, 0))

    def wait():
        begun = time.monotonic()
        try:
            ends.append(right.recv(9))
        except BlockingIOError:
            ends.append(time.monotonic() - begun)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield
    same("ended early", ends, [])
    thread.join(30)
    assert 7.9 < ends[0] < 25, f"it waited {ends[0]} s instead of 8"
    left.sendall(b"x")
    same("data", right.recv(9), b"x")
