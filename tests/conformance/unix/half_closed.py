"""Streams that were shut down for writing or reading, with what was sent before"""
import socket

from case import case, same


@case
def half_closed():
    left, right = socket.socketpair()
    left.send(b"last words")
    left.shutdown(socket.SHUT_WR)
    deaf, speaker = socket.socketpair()
    deaf.shutdown(socket.SHUT_RD)
    yield
    same("rest", (right.recv(4), right.recv(99), right.recv(9)), (b"last", b" words", b""))
    right.send(b"back")
    same("back", left.recv(9), b"back")
    for what, call in (("writing", lambda: left.send(b"x")), ("to the deaf", lambda: speaker.send(b"x"))):
        try:
            call()
            raise AssertionError(what)
        except BrokenPipeError:
            pass
    same("the deaf reads", deaf.recv(9), b"")
    deaf.send(b"y")
    same("and speaks", speaker.recv(9), b"y")
