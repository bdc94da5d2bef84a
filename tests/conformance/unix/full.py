"""A full stream with a writer that waits, and a datagram queue that is full"""
import socket
import threading

from case import case, same


@case
def full():
    left, right = socket.socketpair()
    data = bytes(at * 7 & 255 for at in range(900_000))
    thread = threading.Thread(target=lambda: left.sendall(data), daemon=True)
    thread.start()
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.setblocking(False)
    count = 0
    try:
        while True:
            one.send(b"%d" % count)
            count += 1
    except BlockingIOError:
        pass
    yield
    same("datagrams", [other.recv(9) for _ in range(count)], [b"%d" % at for at in range(count)])
    found = b""
    while len(found) < len(data):
        found += right.recv(1 << 16)
    thread.join(10)
    same("data", found == data, True)
