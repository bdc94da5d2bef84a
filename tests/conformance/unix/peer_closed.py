"""A stream whose peer has closed: what was sent, the end, errors"""
import select
import socket

from case import case, same


@case
def peer_closed():
    left, right = socket.socketpair()
    left.send(b"last")
    left.close()
    yield
    poll = select.poll()
    poll.register(right, select.POLLIN | select.POLLRDHUP)
    same("poll", poll.poll(0), [(right.fileno(), select.POLLIN | select.POLLRDHUP | select.POLLHUP)])
    same("data", (right.recv(9), right.recv(9)), (b"last", b""))
    try:
        right.send(b"x")
        raise AssertionError("it was sent")
    except BrokenPipeError:
        pass
