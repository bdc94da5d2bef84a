"""A key in the session keyring of a process"""
# refused: key
import ctypes

from case import case, same, syscall

ADD_KEY, KEYCTL = 248, 250
JOIN_SESSION, READ, SESSION = 1, 11, -3


@case
def keyring():
    syscall(KEYCTL, JOIN_SESSION, 0)
    kind, name, payload = (ctypes.create_string_buffer(text) for text in (b"user", b"gantry-test", b"secret"))
    key = syscall(ADD_KEY, ctypes.addressof(kind), ctypes.addressof(name), ctypes.addressof(payload), 6, SESSION)
    yield
    found = ctypes.create_string_buffer(16)
    same("length", syscall(KEYCTL, READ, key, ctypes.addressof(found), 16), 6)
    same("payload", found.raw[:6], b"secret")
