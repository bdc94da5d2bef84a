"""A unix socket that takes no descriptors (SO_PASSRIGHTS)"""
import errno
import socket

from case import case, same

PASSRIGHTS = 83


@case
def options_new():
    one, other = socket.socketpair()
    expected = 0
    try:
        one.setsockopt(socket.SOL_SOCKET, PASSRIGHTS, 0)
    except OSError as error:
        # Before Linux 6.16.
        same("error", error.errno, errno.ENOPROTOOPT)
        expected = None
    yield
    if expected is not None:
        same("SO_PASSRIGHTS", one.getsockopt(socket.SOL_SOCKET, PASSRIGHTS), 0)
        same("SO_PASSRIGHTS of the other", other.getsockopt(socket.SOL_SOCKET, PASSRIGHTS), 1)
