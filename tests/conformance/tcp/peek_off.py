"""Looking ahead in a stream (SO_PEEK_OFF)"""
import socket

from case import case, same, tcp_pair


@case
def peek_off():
    left, right = tcp_pair()
    right.setsockopt(socket.SOL_SOCKET, 42, 0)
    left.sendall(b"abcdefghij")
    same("first look", right.recv(3, socket.MSG_PEEK), b"abc")
    yield
    same("where it looks", right.getsockopt(socket.SOL_SOCKET, 42), 3)
    same("second look", right.recv(3, socket.MSG_PEEK), b"def")
    same("data", right.recv(99), b"abcdefghij")
