"""A program that checks itself: threads, a POSIX timer, a pipe to a child, a unix socket, a condition variable.

It answers `check\n` on TCP port 7000 with `ok N` (N rises) or with what is wrong.
"""
import ctypes, hashlib, os, signal, socket, sys, threading, time

errors = []
counts = {"timer": 0, "pipe": 0, "unix": 0, "cond": 0, "sleep": 0, "file": 0}


def fail(text):
    errors.append(text)


# An interval timer that ticks by signal.
def on_alarm(_signal, _frame):
    counts["timer"] += 1


signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)

# A child that answers numbers over two pipes.
down_r, down_w = os.pipe()
up_r, up_w = os.pipe()
child = os.fork()
if child == 0:
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.close(down_w)
    os.close(up_r)
    reader = os.fdopen(down_r, "rb")
    total = 0
    for line in reader:
        total += int(line)
        os.write(up_w, b"%d\n" % total)
    os._exit(0)
os.close(down_r)
os.close(up_w)


def piped():
    reader = os.fdopen(up_r, "rb")
    total = 0
    number = 0
    while True:
        number += 1
        total += number
        os.write(down_w, b"%d\n" % number)
        answer = int(reader.readline())
        if answer != total:
            fail(f"pipe: {answer} instead of {total}")
        counts["pipe"] += 1
        time.sleep(0.001)


def unix_server(listener):
    connection, _ = listener.accept()
    while True:
        data = connection.recv(64)
        if not data:
            fail("unix socket: closed")
            return
        connection.sendall(data)


def unix_client(path):
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    number = 0
    while True:
        number += 1
        message = b"%060d" % number
        client.sendall(message)
        answer = b""
        while len(answer) < 60:
            answer += client.recv(60 - len(answer))
        if answer != message:
            fail(f"unix socket: {answer!r}")
        counts["unix"] += 1
        time.sleep(0.001)


condition = threading.Condition()
turn = [0]


def alternate(me):
    while True:
        with condition:
            while turn[0] != me:
                condition.wait()
            turn[0] = 1 - me
            counts["cond"] += 1
            condition.notify_all()
        time.sleep(0.001)


def sleeper():
    while True:
        before = time.monotonic()
        time.sleep(0.5)
        slept = time.monotonic() - before
        if slept < 0.499:
            fail(f"slept {slept} instead of 0.5")
        counts["sleep"] += 1


def writer():
    # A file that is written, read back and hashed; its name is gone.
    path = "/tmp/scratch"
    with open(path, "w+b", buffering=0) as file:
        os.unlink(path)
        written = hashlib.sha256()
        number = 0
        while True:
            number += 1
            line = b"line %d\n" % number
            file.write(line)
            written.update(line)
            if number % 50 == 0:
                position = file.tell()
                file.seek(0)
                if hashlib.sha256(file.read()).digest() != written.digest():
                    fail("file: another content")
                file.seek(position)
            if number > 2000:
                file.seek(0)
                file.truncate()
                written = hashlib.sha256()
                number = 0
            counts["file"] += 1
            time.sleep(0.002)


listener = socket.socket(socket.AF_UNIX)
listener.bind("/tmp/socket")
listener.listen()
for target, args in [
    (piped, ()),
    (unix_server, (listener,)),
    (unix_client, ("/tmp/socket",)),
    (alternate, (0,)),
    (alternate, (1,)),
    (sleeper, ()),
    (writer, ()),
]:
    threading.Thread(target=target, args=args, daemon=True).start()

server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("0.0.0.0", 7000))
server.listen()
print("ready", flush=True)


def serve(connection):
    answers = 0
    stream = connection.makefile("rwb")
    seen = dict(counts)
    for line in stream:
        answers += 1
        now = dict(counts)
        stuck = [name for name in now if now[name] < seen[name]]
        if errors or stuck:
            stream.write(f"bad {errors[:3]} {stuck}\n".encode())
        else:
            stream.write(f"ok {answers} {sum(now.values())} {' '.join(f'{k}={v}' for k, v in now.items())}\n".encode())
        stream.flush()


while True:
    accepted, _ = server.accept()
    threading.Thread(target=serve, args=(accepted,), daemon=True).start()
