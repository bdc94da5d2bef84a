"""A connection whose peer has closed, with data before that"""
# refused-here: move: has ended
from case import case, same, tcp_pair


@case
def closed():
    left, right = tcp_pair()
    left.sendall(b"farewell" * 1000)
    left.close()
    yield
    found = b""
    while piece := right.recv(65536):
        found += piece
    same("data", found, b"farewell" * 1000)
