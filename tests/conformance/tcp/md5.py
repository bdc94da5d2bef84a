"""A connection whose segments are signed (TCP_MD5SIG)"""
# refused: keys of signatures
import socket
import struct

from case import case, same


def key():
    address = struct.pack("=H2x4s120x", socket.AF_INET, socket.inet_aton("127.0.0.1"))
    return address + struct.pack("=BBHI80s", 0, 0, 6, 0, b"secret")


@case
def md5():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, 14, key())
    client = socket.socket()
    client.setsockopt(socket.IPPROTO_TCP, 14, key())
    client.connect(listener.getsockname())
    server = listener.accept()[0]
    yield
    client.sendall(b"signed")
    same("data", server.recv(9), b"signed")
    unsigned = socket.socket()
    unsigned.settimeout(1.5)
    try:
        unsigned.connect(listener.getsockname())
    except TimeoutError:
        return
    raise AssertionError("a connection without a signature was accepted")
