"""A connection that is just being made"""
# refused: just being made
import socket

from case import case, same


@case
def syn_sent():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    filling = [socket.create_connection(listener.getsockname())]
    waiting = socket.socket()
    waiting.setblocking(False)
    waiting.connect_ex(listener.getsockname())
    # tcpi_state: SYN_SENT
    same("state", waiting.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1), b"\x02")
    yield
    listener.accept()
    filling.append(listener.accept()[0])
    waiting.settimeout(10)
    waiting.connect(listener.getsockname())
