"""A send queue that is full, with a writer that waits for room"""
import fcntl
import socket
import struct
import threading

from case import case, same, tcp_pair, until


@case
def full():
    left, right = tcp_pair()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20000)
    right.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 5000)
    data = bytes(range(256)) * 4096
    done = []

    def write():
        left.sendall(data)
        left.shutdown(socket.SHUT_WR)
        done.append(1)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    until("the queue is full", lambda: not left.gettimeout() and queued(left) > 10000)
    yield
    same("still waiting", done, [])
    found = b""
    while piece := right.recv(65536):
        found += piece
    same("data", (len(found), found == data), (len(data), True))
    thread.join(10)
    same("written", done, [1])


def queued(end):
    # SIOCOUTQ
    return struct.unpack("i", fcntl.ioctl(end, 0x5411, bytes(4)))[0]
