"""Looking ahead in unread datagrams (SO_PEEK_OFF)"""
import socket

from case import case, same


@case
def peek_off():
    receiver, sender = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    receiver.bind(("127.0.0.1", 0))
    receiver.setsockopt(socket.SOL_SOCKET, 42, 0)
    for data in (b"abcdef", b"ghi"):
        sender.sendto(data, receiver.getsockname())
    same("first look", receiver.recv(4, socket.MSG_PEEK), b"abcd")
    yield
    same("where it looks", receiver.getsockopt(socket.SOL_SOCKET, 42), 4)
    same("second look", receiver.recv(9, socket.MSG_PEEK), b"ef")
    same("data", (receiver.recv(9), receiver.recv(9)), (b"abcdef", b"ghi"))
