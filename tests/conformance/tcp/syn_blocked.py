"""A thread that waits in connect(2)"""
import socket
import threading

from case import case, same, until

MINTTL = 21


@case
def syn_blocked():
    listener = socket.create_server(("127.0.0.1", 0))
    # IP_MINTTL: what arrives with less is dropped without a word.
    listener.setsockopt(socket.IPPROTO_IP, MINTTL, 255)
    client = socket.socket()
    ended = []

    def connect():
        try:
            client.connect(listener.getsockname())
            ended.append("connected")
        except OSError as error:
            ended.append(error)

    thread = threading.Thread(target=connect)
    thread.start()
    until("SYN_SENT", lambda: client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x02")
    name = client.getsockname()
    yield
    same("still waits", ended, [])
    listener.setsockopt(socket.IPPROTO_IP, MINTTL, 0)
    listener.settimeout(30)
    same("who connects", listener.accept()[1], name)
    thread.join(10)
    same("connect", ended, ["connected"])
