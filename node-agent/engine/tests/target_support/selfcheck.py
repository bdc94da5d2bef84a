"""A program that uses many kernel objects and checks itself. Progress goes to the file named in argv[1]."""
import ctypes, os, select, signal, socket, struct, sys, threading, time

os.closerange(3, 1024)  # what the test runner left open
log = open(sys.argv[1], "a", buffering=1)
counts = {}
lock = threading.Lock()


def count(name):
    with lock:
        counts[name] = counts.get(name, 0) + 1


def bad(what):
    log.write(f"BAD {what}\n")


def guarded(work):
    def run():
        while True:
            try:
                work()
            except Exception as error:
                bad(f"{work.__name__}: {error!r}")
                return
    return run


def sleeper():
    time.sleep(0.002)
    count("sleep")


cond = threading.Condition()


def waiter():
    with cond:
        cond.wait(0.005)
    count("cond")


down_r, down_w = os.pipe()
up_r, up_w = os.pipe()
left, right = socket.socketpair()
child = os.fork()
if child == 0:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    while True:
        word = os.read(down_r, 8)
        if len(word) != 8:
            os._exit(1)
        os.write(up_w, struct.pack("<Q", struct.unpack("<Q", word)[0] + 1))
os.close(down_r)
os.close(up_w)
sequence = 0


def pipe():
    global sequence
    os.write(down_w, struct.pack("<Q", sequence))
    answer = struct.unpack("<Q", os.read(up_r, 8))[0]
    if answer != sequence + 1:
        bad(f"pipe {answer} {sequence}")
    sequence += 1
    count("pipe")
    time.sleep(0.001)


def sockets():
    left.sendall(b"ping")
    if right.recv(4) != b"ping":
        bad("socketpair")
    count("socketpair")
    time.sleep(0.001)


server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen(5)
client = socket.create_connection(server.getsockname())
accepted, _ = server.accept()
client.sendall(b"unread")
libc = ctypes.CDLL(None, use_errno=True)
epoll = select.epoll()
event = libc.eventfd(0, 0x800)
timer = libc.timerfd_create(1, 0x800)
libc.timerfd_settime(timer, 0, struct.pack("<4q", 0, 10_000_000, 0, 10_000_000), None)
epoll.register(event, select.EPOLLIN)
epoll.register(timer, select.EPOLLIN | select.EPOLLET)


def events():
    for fd, _ in epoll.poll():
        value = struct.unpack("<Q", os.read(fd, 8))[0]
        if fd == timer:
            count("timer")
            os.write(event, struct.pack("<Q", 1))
        elif fd == event:
            count("event")
        else:
            bad(f"epoll gave {fd}")


def tcp():
    accepted.sendall(b"pong")
    if client.recv(4) != b"pong":
        bad("tcp")
    count("tcp")
    time.sleep(0.001)


def alarm(*_):
    counts["alarm"] = counts.get("alarm", 0) + 1


data = bytearray(os.urandom(1 << 22))
total = sum(data)


def memory():
    if sum(data) != total:
        bad("memory")
    count("memory")
    time.sleep(0.01)


signal.signal(signal.SIGALRM, alarm)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
started = time.monotonic()
last = started
for work in (sleeper, waiter, pipe, sockets, events, memory, tcp):
    threading.Thread(target=guarded(work), daemon=True, name=work.__name__).start()
log.write(f"ready {os.getpid()} child {child}\n")
while True:
    time.sleep(0.05)
    now = time.monotonic()
    if now < last:
        bad("time went back")
    last = now
    if accepted.recv(6, socket.MSG_PEEK) != b"unread":
        bad("tcp receive queue")
    log.write("counts " + " ".join(f"{k}={v}" for k, v in sorted(counts.items())) + "\n")
