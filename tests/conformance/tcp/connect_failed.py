"""A connection that was refused, which the program has not asked for yet (SO_ERROR)"""
# refused: has ended
import errno
import select
import socket

from case import case, same, until


@case
def connect_failed():
    # Bound and not listening: nobody answers, and nobody else gets the port.
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(closed.getsockname())
    until("the answer", lambda: select.select([], [client], [], 0)[1])
    yield
    same("error", client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), errno.ECONNREFUSED)
