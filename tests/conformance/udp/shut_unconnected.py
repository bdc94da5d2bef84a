"""Sockets without a peer that were shut down, which the kernel does though it says that it cannot"""
import errno
import select
import socket

from case import case, same


def shut(how):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    try:
        sock.shutdown(how)
    except OSError as error:
        same("error", error.errno, errno.ENOTCONN)
    return sock


def events(sock):
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return sum(found for _, found in poll.poll(0)) & (select.POLLRDHUP | select.POLLHUP)


@case
def shut_unconnected():
    both, reading, writing = (shut(how) for how in (socket.SHUT_RDWR, socket.SHUT_RD, socket.SHUT_WR))
    # What waits is read all the same.
    reading.sendto(b"before", reading.getsockname())
    yield
    same("both", events(both), select.POLLRDHUP | select.POLLHUP)
    same("reading", events(reading), select.POLLRDHUP)
    same("writing", events(writing), 0)
    same("data", reading.recv(9), b"before")
    same("end", reading.recv(9), b"")
    for sock in both, writing:
        try:
            sock.sendto(b"x", reading.getsockname())
        except BrokenPipeError:
            continue
        raise AssertionError("it sends")
