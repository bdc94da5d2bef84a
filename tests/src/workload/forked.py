"""A server with workers in small: one process fills 256 MiB and forks 32 workers, which read it and write a page of their own
now and then.

It answers on TCP port 7000, one connection at a time: `check` with `ok N N`, counted for each connection, and `verify` with
`ok sound` or `bad` and the workers whose memory is not what it should be.
"""
import mmap, os, select, socket, zlib

WORKERS, PAGE = 32, 4096
PAGES = (256 << 20) // PAGE
region = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def write(page):
    content = os.urandom(PAGE)
    region[page * PAGE:(page + 1) * PAGE] = content
    return zlib.crc32(content)


def work(worker, ours):
    written, turn = {}, 0
    while True:
        if not select.select([ours], [], [], 0.01)[0]:
            page = worker * 100 + turn % 16
            written[page] = write(page)
            turn += 1
            continue
        if not ours.recv(1):
            os._exit(0)
        sound = all(zlib.crc32(region[page * PAGE:(page + 1) * PAGE]) == written.get(page, sums[page]) for page in range(PAGES))
        ours.sendall(b"y" if sound else b"n")


def verify():
    wrong = []
    # One after the other: the answer need not be fast, and the machine has other things to do.
    for worker, other in enumerate(workers):
        other.sendall(b"v")
        if other.recv(1) != b"y":
            wrong.append(str(worker))
    return "bad " + " ".join(wrong) if wrong else "ok sound"


sums = [write(page) for page in range(PAGES)]
workers = []
for worker in range(WORKERS):
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        for other in workers:
            other.close()
        theirs.close()
        work(worker, ours)
    ours.close()
    workers.append(theirs)
listener = socket.create_server(("0.0.0.0", 7000))
while True:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        for answered, line in enumerate(connection.makefile("rb"), 1):
            answer = verify() if line == b"verify\n" else f"ok {answered} {answered}"
            connection.sendall(answer.encode() + b"\n")
    except ConnectionError:
        pass
    connection.close()
