"""Connected sockets, with a datagram that came before the connection from elsewhere"""
import socket

from case import case, same


@case
def connected():
    one, two, third = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3))
    for sock in (one, two, third):
        sock.bind(("127.0.0.1", 0))
    third.sendto(b"early", one.getsockname())
    one.connect(two.getsockname())
    two.connect(one.getsockname())
    two.send(b"later")
    yield
    same("early", one.recvfrom(9), (b"early", third.getsockname()))
    same("later", one.recvfrom(9), (b"later", two.getsockname()))
    third.sendto(b"stranger", one.getsockname())
    two.send(b"friend")
    same("only the peer's", one.recv(9), b"friend")
    same("peer", one.getpeername(), two.getsockname())
