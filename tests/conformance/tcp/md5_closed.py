"""A socket that has a key of signatures (TCP_MD5SIG) before it connects"""
# refused: keys of signatures
import socket
import struct

from case import case, same


@case
def md5_closed():
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.socket()
    address = struct.pack("=H2x4s120x", socket.AF_INET, socket.inet_aton("127.0.0.1"))
    client.setsockopt(socket.IPPROTO_TCP, 14, address + struct.pack("=BBHI80s", 0, 0, 6, 0, b"secret"))
    yield
    # Nobody at the listener has the key: what is signed is dropped.
    client.settimeout(1.5)
    try:
        client.connect(listener.getsockname())
    except TimeoutError:
        return
    same("the key", "gone", "there")
