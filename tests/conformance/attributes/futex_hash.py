"""A table of futexes of the process's own, with a size that it chose (PR_FUTEX_HASH)"""
# lost: slots
import errno

from case import case, prctl, same

FUTEX_HASH, SET_SLOTS, GET_SLOTS = 78, 1, 2


@case
def futex_hash():
    expected = 64
    try:
        prctl(FUTEX_HASH, SET_SLOTS, expected)
    except OSError as error:
        # Before Linux 6.17.
        assert error.errno in (errno.EINVAL, errno.ENOSYS), error
        expected = None
    yield
    if expected is not None:
        same("slots", prctl(FUTEX_HASH, GET_SLOTS), expected)
