"""The headers of the first segment, kept for the one who accepts (TCP_SAVED_SYN)"""
# refused: SAVED_SYN
import socket

from case import case


@case
def saved_syn():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, 27, 1)
    client = socket.create_connection(listener.getsockname())
    server = listener.accept()[0]
    yield
    headers = server.getsockopt(socket.IPPROTO_TCP, 28, 200)
    assert len(headers) >= 40, f"{len(headers)} bytes"
    client.close()
