"""A server of its own unix socket that accepts only when it is told to: `accept` on TCP port 7000 answers `ok`.

`check` answers `ok N N` as others do.
"""
import os, socket, threading

listener = socket.socket(socket.AF_UNIX)
listener.bind("/data/listener")
listener.listen(8)
waiting = []


def come():
    client = socket.socket(socket.AF_UNIX)
    client.connect("/data/listener")
    client.sendall(b"hello")
    waiting.append(client)


def accept():
    for client in waiting:
        connection, _ = listener.accept()
        if connection.recv(5) != b"hello":
            return "lost what was said"
        connection.sendall(b"welcome")
        if client.recv(7) != b"welcome":
            return "the answer was lost"
    waiting.clear()
    return "ok"


def serve(connection):
    for number, line in enumerate(connection.makefile("rb"), 1):
        answer = f"ok {number} {number}"
        if line == b"come\n":
            come()
            answer = "ok"
        elif line == b"accept\n":
            answer = accept()
        connection.sendall(answer.encode() + b"\n")


server = socket.create_server(("0.0.0.0", 7000))
while True:
    connection, _ = server.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
