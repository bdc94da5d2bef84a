"""A time stamp that waits in the error queue (SO_TIMESTAMPING)"""
# refused: error queue
import select
import socket

from case import case, same, tcp_pair, until

# SOF_TIMESTAMPING_TX_SOFTWARE and _SOFTWARE, of what is sent, and with it what was sent.
STAMPS = 1 << 1 | 1 << 4


@case
def error_queue():
    left, right = tcp_pair()
    left.setsockopt(socket.SOL_SOCKET, 37, STAMPS)
    left.send(b"stamped")
    poll = select.poll()
    poll.register(left, select.POLLERR)
    until("the time stamp", lambda: poll.poll(0))
    yield
    # MSG_ERRQUEUE
    same("what was sent", left.recvmsg(99, 512, 0x2000)[0][-7:], b"stamped")
    same("data", right.recv(9), b"stamped")
