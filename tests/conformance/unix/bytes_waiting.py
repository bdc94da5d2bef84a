"""A unix socket whose messages tell how many bytes wait behind them (SO_INQ)"""
# lost: what waits
import errno
import socket

from case import case, same

INQ = 84


@case
def bytes_waiting():
    one, other = socket.socketpair()
    expected = [(socket.SOL_SOCKET, INQ, (3).to_bytes(4, "little"))]
    try:
        one.setsockopt(socket.SOL_SOCKET, INQ, 1)
    except OSError as error:
        # Before Linux 6.17.
        same("error", error.errno, errno.ENOPROTOOPT)
        expected = []
    yield
    other.send(b"four")
    # No option tells of it.
    same("what waits", one.recvmsg(1, 64)[1], expected)
