"""An urgent byte that was not read"""
# refused: urgent
import select
import socket

from case import case, same, tcp_pair, until


@case
def urgent():
    left, right = tcp_pair()
    left.sendall(b"before")
    left.send(b"!", socket.MSG_OOB)
    left.sendall(b"after")
    until("the urgent byte", lambda: select.select([], [], [right], 0)[2])
    yield
    same("urgent byte", right.recv(1, socket.MSG_OOB), b"!")
    same("up to the mark", right.recv(99), b"before")
    same("after it", right.recv(99), b"after")
