"""A program that does little: it answers `check\n` on TCP port 7000 with `ok N N`.

With a directory of files as its argument it writes ten of them anew, again and again, each time ten others.
"""
import os, socket, sys, threading, time


def serve(connection):
    for number, _ in enumerate(connection.makefile("rb"), 1):
        connection.sendall(b"ok %d %d\n" % (number, number))


def change(directory):
    count = sum(len(names) for _, _, names in os.walk(directory))
    turn = 0
    while True:
        for number in range(10):
            at = (number * 7919 + turn * 101) % count
            with open(f"{directory}/{at // 100}/{at}", "w") as file:
                file.write(f"changed {turn}")
        turn += 1
        time.sleep(0.02)


if len(sys.argv) > 1:
    threading.Thread(target=change, args=(sys.argv[1],), daemon=True).start()
listener = socket.create_server(("0.0.0.0", 7000))
while True:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
