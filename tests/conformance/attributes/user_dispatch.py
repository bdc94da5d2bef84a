"""System calls that the program dispatches itself (PR_SET_SYSCALL_USER_DISPATCH)"""
# refused: dispatch
import ctypes

from case import case, libc


@case
def user_dispatch():
    selector = ctypes.create_string_buffer(1)
    # On, and the selector says that every call is let through.
    assert libc.prctl(59, 1, ctypes.c_long(0), ctypes.c_long(0), ctypes.c_void_p(ctypes.addressof(selector))) == 0
    yield
    # There is no way to ask; switching it off needs it to be there and never fails.
    assert libc.prctl(59, 0, ctypes.c_long(0), ctypes.c_long(0), ctypes.c_void_p(0)) == 0
