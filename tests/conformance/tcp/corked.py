"""Data that TCP_CORK holds back"""
import socket

from case import case, same, tcp_pair


@case
def corked():
    left, right = tcp_pair()
    left.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    left.send(b"held back")
    yield
    same("cork", left.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK), 1)
    left.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    same("data", right.recv(99), b"held back")
