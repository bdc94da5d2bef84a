"""Calls that wait for others go on: read of a pipe, accept, waitpid, flock, sigwait, msg of a socket"""
import fcntl
import os
import signal
import socket
import threading

from case import case, fork, forever, same, scratch


@case
def waits():
    found = {}

    def run(name, call):
        def work():
            try:
                found[name] = call()
            except OSError as error:
                found[name] = error
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    reader, writer = os.pipe()
    listener = socket.create_server(("127.0.0.1", 0))
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    child = fork(forever)
    held, wanted = (os.open(scratch("lock"), os.O_CREAT | os.O_RDWR) for _ in range(2))
    fcntl.flock(held, fcntl.LOCK_EX)
    number = signal.SIGRTMIN + 9
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    threads = [
        run("read", lambda: os.read(reader, 10)),
        run("accept", lambda: listener.accept()[0].recv(10)),
        run("waitpid", lambda: os.waitpid(child, 0)[1]),
        run("recv", lambda: right.recv(10)),
        run("sigwait", lambda: int(signal.sigwait({number}))),
    ]
    yield
    os.write(writer, b"pipe")
    client = socket.create_connection(listener.getsockname())
    client.send(b"tcp")
    os.kill(child, signal.SIGKILL)
    left.send(b"unix")
    os.kill(os.getpid(), number)
    for thread in threads:
        thread.join(20)
    same("results", found, {"read": b"pipe", "accept": b"tcp", "waitpid": 9, "recv": b"unix", "sigwait": int(number)})
