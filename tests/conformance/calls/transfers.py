"""Transfers between descriptors that wait in the middle: sendfile, splice, tee; nothing comes twice or is missing"""
import os
import socket
import threading

from case import case, same, scratch, syscall, tcp_pair, until

SPLICE, TEE = 275, 276
SIZE = 4 << 20


@case
def transfers():
    content = os.urandom(SIZE)
    with open(scratch("file"), "wb") as file:
        file.write(content)
    source, tcp_source = (os.open(scratch("file"), os.O_RDONLY) for _ in range(2))
    out, inside = socket.socketpair()
    tcp_out, tcp_inside = tcp_pair()
    reader, writer = os.pipe()
    (tee_in, tee_fill), (tee_out, tee_to) = os.pipe(), os.pipe()
    results, tids = {}, []

    def run(name, work):
        def body():
            tids.append(threading.get_native_id())
            results[name] = work()

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        return thread

    def whole(call):
        def work():
            done = 0
            while done < SIZE:
                got = call(SIZE - done)
                if got == 0:
                    break
                done += got
            return done

        return work

    inside_pipe = os.pipe()
    threads = [
        run("sendfile", whole(lambda left: os.sendfile(out.fileno(), source, None, left))),
        run("over TCP", whole(lambda left: os.sendfile(tcp_out.fileno(), tcp_source, None, left))),
        run("splice", lambda: syscall(SPLICE, reader, 0, inside_pipe[1], 0, 4096, 0)),
        run("tee", lambda: syscall(TEE, tee_in, tee_to, 4096, 0)),
    ]
    until("all wait", lambda: len(tids) == 4 and all(sleeping(tid) for tid in tids))
    yield
    for end in (inside, tcp_inside):
        found = b""
        while len(found) < SIZE:
            found += end.recv(1 << 16)
        same("what sendfile sent", found == content, True)
    os.write(writer, b"spliced")
    os.write(tee_fill, b"teed")
    for thread in threads:
        thread.join(20)
    same("results", results, {"sendfile": SIZE, "over TCP": SIZE, "splice": 7, "tee": 4})
    same("spliced", os.read(inside_pipe[0], 99), b"spliced")
    same("both have it", (os.read(tee_in, 99), os.read(tee_out, 99)), (b"teed", b"teed"))


def sleeping(tid):
    with open(f"/proc/self/task/{tid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "S"
