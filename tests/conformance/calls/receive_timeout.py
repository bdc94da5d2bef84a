"""Calls on sockets with a time limit (SO_RCVTIMEO, SO_SNDTIMEO): recv, accept and send go on waiting"""
import errno
import os
import socket
import struct
import threading

from case import case, same, until

LIMIT = struct.pack("=qq", 30, 0)


@case
def receive_timeout():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, LIMIT)
    left, right = socket.socketpair()
    full, drain = socket.socketpair()
    for end in (left, full):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, LIMIT)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, LIMIT)
    full.setblocking(False)
    sent = 0
    try:
        while True:
            sent += full.send(b"x" * 4096)
    except BlockingIOError:
        pass
    full.setblocking(True)
    answers = {}

    def waits(name, call):
        def work():
            try:
                answers[name] = call()
            except OSError as error:
                answers[name] = errno.errorcode[error.errno]

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        until("it waits", lambda: thread.native_id and sleeping(thread.native_id))

    waits("recv", lambda: left.recv(9))
    waits("accept", lambda: bool(os.fstat(listener._accept()[0])))
    waits("send", lambda: full.send(b"y" * 100))
    yield
    # What has waited may find more room at once.
    same("nothing yet", {name for name in answers if name != "send"}, set())
    right.send(b"data")
    with socket.create_connection(listener.getsockname()[:2]):
        until("accept", lambda: "accept" in answers)
    while sent:
        sent -= len(drain.recv(min(sent, 65536)))
    until("all", lambda: len(answers) == 3)
    same("answers", answers, {"recv": b"data", "accept": True, "send": 100})


def sleeping(tid):
    with open(f"/proc/self/task/{tid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "S"
