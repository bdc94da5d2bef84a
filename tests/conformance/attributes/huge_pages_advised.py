"""No transparent huge pages but where they are advised (PR_THP_DISABLE_EXCEPT_ADVISED)"""
import errno

from case import case, prctl, same

SET, GET, EXCEPT_ADVISED = 41, 42, 2


@case
def huge_pages_advised():
    expected = 3
    try:
        prctl(SET, 1, EXCEPT_ADVISED)
    except OSError as error:
        # Before Linux 6.18.
        same("error", error.errno, errno.EINVAL)
        prctl(SET, 1)
        expected = 1
    yield
    same("state", prctl(GET), expected)
