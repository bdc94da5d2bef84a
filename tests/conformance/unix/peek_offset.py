"""SO_PEEK_OFF in the middle of what waits"""
import socket

from case import case, same

SO_PEEK_OFF = 42


@case
def peek_offset():
    pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in (1, 2, 5)]
    for left, right in pairs:
        left.send(b"one")
        left.send(b"second")
        right.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        same("before", right.recv(3, socket.MSG_PEEK), b"one")
    yield
    for left, right in pairs:
        same("offset", right.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF), 3)
        same("next", right.recv(9, socket.MSG_PEEK), b"second")
        same("all", (right.recv(3), right.recv(9)), (b"one", b"second"))
