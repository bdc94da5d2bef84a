"""A connection that was closed while most of its data was still to be sent"""
# refused: still has
# not: host: it stays in the network namespace
from case import case, same, tcp_pair


@case
def orphan():
    left, right = tcp_pair()
    left.setblocking(False)
    sent = 0
    try:
        while sent < 4 << 20:
            sent += left.send(bytes(65536))
    except BlockingIOError:
        pass
    left.close()
    right.settimeout(10)
    yield
    found = 0
    while piece := right.recv(1 << 20):
        found += len(piece)
    same("bytes", found, sent)
