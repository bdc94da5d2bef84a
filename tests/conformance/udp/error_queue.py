"""A message in the error queue (IP_RECVERR)"""
# refused: error queue
import select
import socket

from case import case, same, until


@case
def error_queue():
    gone, sock = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    gone.bind(("127.0.0.1", 0))
    # Only what comes from the discard port gets through: nobody answers to others, and the port stays taken.
    gone.connect(("127.0.0.1", 9))
    sock.setsockopt(socket.IPPROTO_IP, 11, 1)
    sock.connect(gone.getsockname())
    sock.send(b"lost")
    poll = select.poll()
    poll.register(sock, select.POLLERR)
    until("the answer", lambda: poll.poll(0))
    yield
    # MSG_ERRQUEUE
    same("what was sent", sock.recvmsg(99, 512, 0x2000)[0], b"lost")
