"""An epoll set that asks devices itself for a while (EPIOCSPARAMS)"""
import errno
import fcntl
import select
import struct

from case import case, same

SET, GET = 0x40088A01, 0x80088A02


@case
def epoll_busy():
    watch = select.epoll()
    expected = struct.pack("IHBB", 50, 8, 0, 0)
    try:
        fcntl.ioctl(watch.fileno(), SET, expected)
    except OSError as error:
        # Before Linux 6.9.
        assert error.errno in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP), error
        expected = None
    yield
    if expected is not None:
        same("parameters", fcntl.ioctl(watch.fileno(), GET, bytes(8)), expected)
