"""Connections of which one side, or the other has ended its sending, with data before the end"""
import socket

from case import case, same, tcp_pair


@case
def half_closed():
    ends = [tcp_pair() for _ in range(2)]
    ends[0][0].sendall(b"last words")
    ends[0][0].shutdown(socket.SHUT_WR)
    ends[1][1].sendall(b"of the accepted")
    ends[1][1].shutdown(socket.SHUT_WR)
    yield
    same("data", (ends[0][1].recv(99), ends[0][1].recv(99)), (b"last words", b""))
    ends[0][1].sendall(b"answer")
    same("the other way", ends[0][0].recv(99), b"answer")
    same("data", (ends[1][0].recv(99), ends[1][0].recv(99)), (b"of the accepted", b""))
    ends[1][0].sendall(b"answer")
    same("the other way", ends[1][1].recv(99), b"answer")
