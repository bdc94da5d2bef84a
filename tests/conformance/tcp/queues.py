"""A connection with unread data in both directions"""
from case import case, same, tcp_pair


@case
def queues():
    left, right = tcp_pair()
    sent = [b"", b""]

    def change():
        for at, end in enumerate((left, right)):
            if len(sent[at]) < 20000:
                piece = b"%d-%d " % (at, len(sent[at]))
                end.sendall(piece)
                sent[at] += piece

    change()
    yield change
    left.sendall(b"end")
    right.sendall(b"end")
    for end, expected in ((right, sent[0]), (left, sent[1])):
        found = b""
        while not found.endswith(b"end"):
            found += end.recv(65536)
        same("data", found, expected + b"end")
    same("names", (left.getsockname(), left.getpeername()), (right.getpeername(), right.getsockname()))
