"""A byte out of band (MSG_OOB) that waits in a stream"""
# refused: out of band
import socket

from case import case, same


@case
def out_of_band():
    left, right = socket.socketpair()
    left.send(b"before")
    left.send(b"!", socket.MSG_OOB)
    left.send(b"after")
    yield
    same("out of band", right.recv(1, socket.MSG_OOB), b"!")
    same("in band", right.recv(99) + right.recv(99), b"beforeafter")
