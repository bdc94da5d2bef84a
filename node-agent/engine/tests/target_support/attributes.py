"""Gives itself and its children unusual attributes, notes what /proc and the kernel say of them, and compares
after SIGUSR1. The log is the file named in argv[1]; argv[2] is a directory of its own."""
import ctypes, fcntl, json, mmap, os, re, resource, select, signal, socket, struct, sys, threading, time, traceback

os.closerange(3, 1024)
log = open(sys.argv[1], "a", buffering=1)
scratch = sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
PID = os.getpid()


def bad(what):
    log.write(f"BAD {what}\n")


def call(nr, *args):
    result = libc.syscall(nr, *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"syscall {nr}")
    return result


def read(path):
    with open(path) as f:
        return f.read()


# --- children -------------------------------------------------------------------------------------------
def fork(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(99)
    return pid


def sleep_forever():
    while True:
        time.sleep(1000)


shared = mmap.mmap(-1, 8192)  # MAP_SHARED | MAP_ANONYMOUS


def counter():
    while True:
        shared[0:8] = struct.pack("<Q", struct.unpack("<Q", shared[0:8])[0] + 1)
        time.sleep(0.002)


def daemon():
    os.setsid()
    fork(sleep_forever)
    os._exit(0)


def leader():
    os.setsid()
    fork(lambda: (os.setpgid(0, 0), shared.__setitem__(8, 1), sleep_forever()))
    sleep_forever()


prctl = libc.prctl
prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: the daemon's second child comes to us
count_pid = fork(counter)
leader_pid = fork(leader)
while shared[8] == 0:  # the leader's child has its group
    time.sleep(0.001)
daemon_pid = fork(daemon)
os.waitpid(daemon_pid, 0)
stopped_pid = fork(sleep_forever)
os.kill(stopped_pid, signal.SIGSTOP)
os.waitpid(stopped_pid, os.WUNTRACED)
exited_pid = fork(lambda: os._exit(7))
killed_pid = fork(sleep_forever)
os.kill(killed_pid, signal.SIGTERM)

# --- files ----------------------------------------------------------------------------------------------
path = os.path.join(scratch, "data")
with open(path, "w") as f:
    f.write("0123456789" * 100)
plain = os.open(path, os.O_RDWR | os.O_APPEND)
os.lseek(plain, 123, os.SEEK_SET)
copy = os.dup2(plain, 77)
nonblock = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
directory = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
ghost_path = os.path.join(scratch, "ghost")
ghost = os.open(ghost_path, os.O_RDWR | os.O_CREAT)
os.write(ghost, b"deleted content")
os.unlink(ghost_path)
os.ftruncate(ghost, 3 * 4096)
ghost_map = mmap.mmap(ghost, 3 * 4096, flags=mmap.MAP_PRIVATE)
ghost_map[4096:4100] = b"mine"
os.lseek(ghost, 8, os.SEEK_SET)
fifo_path = os.path.join(scratch, "fifo")
os.mkfifo(fifo_path)
fifo = os.open(fifo_path, os.O_RDWR | os.O_NONBLOCK)
pipe_r, pipe_w = os.pipe()
fcntl.fcntl(pipe_w, 1031, 8192)  # F_SETPIPE_SZ
os.write(pipe_w, b"in the pipe")
lone_r, lone_w = os.pipe()
os.write(lone_w, b"tail")
os.close(lone_w)
random_fd = os.open("/dev/urandom", os.O_RDONLY)
semaphore = libc.eventfd(7, 0x801)
ticker = libc.timerfd_create(1, 0x800)
libc.timerfd_settime(ticker, 0, struct.pack("<4q", 3600, 0, 1800, 0), None)
signals = libc.signalfd(-1, ctypes.byref(ctypes.c_uint64(1 << (signal.SIGUSR2 - 1))), 0x800)
pidfd = os.pidfd_open(count_pid)
memfd = os.memfd_create("scratch", 2)
os.write(memfd, b"memory file" + bytes(5000))
memfd_map = mmap.mmap(memfd, 4096)
fcntl.fcntl(memfd, 1033, 2)  # F_ADD_SEALS F_SEAL_SHRINK
left, right = socket.socketpair()
socket.send_fds(left, [b"with a file"], [plain])
left.send(b"after")
left.shutdown(socket.SHUT_WR)
dgram_a, dgram_b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
dgram_a.send(b"one")
dgram_a.send(b"two")
widow, gone = socket.socketpair()
gone.send(b"last words")
gone.close()
unix_path = os.path.join(scratch, "socket")
unix_server = socket.socket(socket.AF_UNIX)
unix_server.bind(unix_path)
os.chmod(unix_path, 0o741)
unix_server.listen(3)
unix_client = socket.socket(socket.AF_UNIX)
unix_client.connect(unix_path)
unix_accepted, _ = unix_server.accept()
abstract = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
abstract.bind(f"\0gantry-{PID}")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
udp.bind(("127.0.0.1", 0))
udp_peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp_peer.bind(("127.0.0.3", 0))
for data in (b"", b"first", b"", b"last" * 10000):
    udp_peer.sendto(data, udp.getsockname())
udp_peer.connect(udp.getsockname())
udp.sendto(b"to the connected", udp_peer.getsockname())
udp6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp6.bind(("::", 0))
udp.sendto(b"over IPv4", ("127.0.0.1", udp6.getsockname()[1]))
udp6.sendto(b"over IPv6", ("::1", udp6.getsockname()[1]))
tcp = socket.socket()
tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
tcp.bind(("127.0.0.1", 0))
tcp.listen(17)
tcp6 = socket.socket(socket.AF_INET6)
epoll = select.epoll()
epoll.register(semaphore, select.EPOLLIN | select.EPOLLET)
epoll.register(pipe_r, select.EPOLLIN | select.EPOLLONESHOT)
stale = os.dup(ticker)
epoll.register(stale, select.EPOLLIN)
os.close(stale)
stale2 = os.open("/dev/null", os.O_RDONLY)
FDS = [plain, copy, nonblock, directory, ghost, fifo, pipe_r, pipe_w, lone_r, random_fd, semaphore, ticker,
       signals, pidfd, memfd, epoll.fileno(), stale2] + [
    s.fileno() for s in (left, right, dgram_a, dgram_b, widow, unix_server, unix_client, unix_accepted, abstract, udp, udp_peer, udp6,
                         tcp, tcp6)]

# --- attributes of the process and a second thread --------------------------------------------------------
anchor = mmap.mmap(-1, 16 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(anchor))
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise(address, 4096, 10)  # MADV_DONTFORK
libc.madvise(address + 4096, 4096, 16)  # MADV_DONTDUMP
libc.madvise(address + 2 * 4096, 4096, 18)  # MADV_WIPEONFORK
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mlock(address + 4 * 4096, 4096)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
anchor[8 * 4096:8 * 4096 + 4] = b"keep"
libc.mprotect(address + 8 * 4096, 4096, 1)
os.umask(0o037)
os.chdir(scratch)
for which, soft in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 500), (resource.RLIMIT_STACK, 4 << 20)):
    resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))
with open("/proc/self/oom_score_adj", "w") as f:
    f.write("321")
with open("/proc/self/coredump_filter", "w") as f:
    f.write("0x7")
prctl(41, 1, 2, 0, 0)  # PR_SET_THP_DISABLE with PR_THP_DISABLE_EXCEPT_ADVISED, where the kernel has it
if prctl(42, 0, 0, 0, 0) == 0:
    prctl(41, 1, 0, 0, 0)
prctl(65, 1, 0, 0, 0)  # PR_SET_MDWE
libc.personality(0x0040000)  # ADDR_NO_RANDOMIZE
signal.setitimer(signal.ITIMER_PROF, 5000, 100)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGWINCH, lambda *_: None)
timer_id = ctypes.c_int()
event = struct.pack("<Qiii", 0x1122334455667788, signal.SIGRTMIN, 0, 0) + bytes(44)
call(222, 1, event, ctypes.byref(timer_id))
call(226, timer_id)
call(222, 1, event, ctypes.byref(timer_id))
call(223, timer_id, 0, struct.pack("<4q", 7, 0, 4000, 0), None)
TIMER = timer_id.value


class Worker(threading.Thread):
    def run(self):
        prctl(15, b"worker-name", 0, 0, 0)
        prctl(29, 70000, 0, 0, 0)
        os.sched_setaffinity(0, {os.cpu_count() - 1})
        self.tid = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, self.tid, 5)
        call(251, 1, 0, (2 << 13) | 6)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTTIN})
        signal.pthread_kill(self.ident, signal.SIGTTIN)
        self.ready = True
        while True:
            time.sleep(1000)


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGRTMIN + 1, signal.SIGRTMIN})
worker = Worker(daemon=True)
worker.ready = False
worker.start()
while not worker.ready:
    time.sleep(0.01)
for value in (5, 6, 7):
    info = struct.pack("<iiiiii", signal.SIGRTMIN + 1, 0, -1, 0, PID, os.getuid()) + struct.pack("<Q", value)
    call(129, PID, signal.SIGRTMIN + 1, info + bytes(128 - len(info)))
os.setpriority(os.PRIO_PROCESS, 0, 3)
if "nobody" in sys.argv:
    os.setgroups([1, 5, 7])
    prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    prctl(24, 7, 0, 0, 0)  # drop CAP_SETUID from the bounding set of this thread, later
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    prctl(4, 1, 0, 0, 0)
    call(126, struct.pack("<Ii", 0x20080522, 0), struct.pack("<6I", 0, 1 << 10, 1 << 10, 0, 0, 0))
    prctl(47, 2, 10, 0, 0)  # raise CAP_NET_BIND_SERVICE as ambient
    prctl(38, 1, 0, 0, 0)  # no_new_privs
    # seccomp: getpriority-like call 141 answers EPERM, everything else is allowed
    program = struct.pack("<HBBI", 0x20, 0, 0, 0) + struct.pack("<HBBI", 0x15, 0, 1, 98)
    program += struct.pack("<HBBI", 6, 0, 0, 0x00050000 | 77) + struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000)
    buffer = ctypes.create_string_buffer(program)
    call(317, 1, 1, struct.pack("<HxxxxxxQ", 4, ctypes.addressof(buffer)))

prctl(1, signal.SIGHUP, 0, 0, 0)  # PR_SET_PDEATHSIG; it is ignored

# --- what is compared ---------------------------------------------------------------------------------------
STATUS = ("Name Umask Uid Gid Groups SigPnd ShdPnd SigBlk SigIgn SigCgt CapInh CapPrm CapEff CapBnd "
          "CapAmb NoNewPrivs Seccomp Seccomp_filters Cpus_allowed THP_enabled VmLck Threads").split()
CHILDREN = [count_pid, leader_pid, stopped_pid, exited_pid, killed_pid]


def status(path):
    fields = dict(line.split(":", 1) for line in read(path).splitlines())
    found = {k: fields[k].strip() for k in STATUS if k in fields}
    found["SigBlk"] = f"{int(found['SigBlk'], 16) & ~0x180000000:016x}"  # the C library's own two
    return found


def host(pid):
    """The number that this /proc has for a pid of ours."""
    if read("/proc/self/stat").split()[0] == str(os.getpid()):
        return pid
    places = [f"/proc/{e}" for e in os.listdir("/proc") if e.isdigit()]
    places += [f"/proc/self/task/{e}" for e in os.listdir("/proc/self/task")]
    for place in places:
            try:
                numbers = re.search(r"NSpid:(.*)", read(f"{place}/status"))[1].split()
            except OSError:
                continue
            if numbers[-1] == str(pid) and len(numbers) > 1:
                return int(place.rsplit("/", 1)[1])
    return -1


def describe_fd(fd):
    info = read(f"/proc/self/fdinfo/{fd}")
    link = os.readlink(f"/proc/self/fd/{fd}")
    keep = [line for line in info.splitlines()
            if re.match(r"pos|flags|eventfd-count|eventfd-semaphore|sigmask|clockid|settime", line)]
    for line in info.splitlines():
        if line.startswith("tfd:"):
            keep.append(" ".join(line.split()[:6]))
        if line.startswith("inotify"):
            keep.append(re.sub(r"ino:\S+ sdev:\S+ | ignored.*", "", line))
    out = {"info": sorted(keep), "link": re.sub(r"\d+", "N", link) if ":" in link else link}
    copy = os.dup(fd)
    try:
        s = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return out
    out["socket"] = [s.family, s.type, s.proto]
    for level, name in ((1, 2), (1, 6), (1, 9), (1, 30), (6, 1)):
        try:
            out[f"{level}/{name}"] = s.getsockopt(level, name)
        except OSError:
            pass
    for what in (s.getsockname, s.getpeername):
        try:
            out[what.__name__] = str(what())
        except OSError as error:
            out[what.__name__] = error.errno
    s.close()
    return out


def mappings():
    out = []
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", read("/proc/self/smaps")):
        head, flags = block.splitlines()[0].split(), re.search(r"VmFlags: (.*)", block)[1]
        if int(head[0].split("-")[0], 16) in range(address, address + 16 * 4096):
            out.append([head[0], head[1], re.sub("sd|ac", "", flags).split(), re.search(r"Locked: *(\d+)", block)[1]])
    return out


def snapshot():
    me = host(PID)
    snap = {"main": status("/proc/thread-self/status"), "worker": status(f"/proc/self/task/{host(worker.tid)}/status")}
    for name in ("limits", "oom_score_adj", "coredump_filter", "personality", "cmdline", "environ"):
        snap[name] = read(f"/proc/self/{name}")
    snap["auxv"] = open("/proc/self/auxv", "rb").read().hex()
    snap["timers"] = [l for l in read("/proc/self/timers").splitlines() if not l.startswith("notify")]
    for name in ("cwd", "root", "exe"):
        snap[name] = os.readlink(f"/proc/self/{name}")
    snap["slack"] = [prctl(30, 0, 0, 0, 0), read(f"/proc/{host(worker.tid)}/timerslack_ns") if "nobody" not in sys.argv else ""]
    snap["dumpable"] = prctl(3, 0, 0, 0, 0)
    snap["thp, mdwe, death signal"] = [prctl(42, 0, 0, 0, 0), prctl(66, 0, 0, 0, 0), death_signal()]
    snap["subreaper"] = read("/proc/self/status") and subreaper()
    snap["nice"] = [os.getpriority(os.PRIO_PROCESS, 0), os.getpriority(os.PRIO_PROCESS, worker.tid)]
    snap["ioprio"] = [libc.syscall(252, 1, 0), libc.syscall(252, 1, worker.tid)]
    snap["affinity"] = [sorted(os.sched_getaffinity(0)), sorted(os.sched_getaffinity(worker.tid))]
    snap["mappings"] = mappings()
    snap["fds"] = {fd: describe_fd(fd) for fd in FDS}
    snap["open"] = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
    timer = ctypes.create_string_buffer(32)
    call(224, TIMER, timer)
    snap["timer interval"] = struct.unpack("<4q", timer.raw)[:2]
    snap["itimer"] = signal.getitimer(signal.ITIMER_PROF)[1]
    for pid in CHILDREN:
        fields = read(f"/proc/{host(pid)}/stat").rsplit(")", 1)[1].split()
        snap[f"child {pid}"] = [fields[0] if fields[0] != "R" else "S", os.getsid(pid), os.getpgid(pid)]
    snap["tree"] = sorted(inner_tree(me))
    return json.loads(json.dumps(snap))


def death_signal():
    value = ctypes.c_int()
    prctl(2, ctypes.byref(value), 0, 0, 0)
    return value.value


def subreaper():
    value = ctypes.c_int()
    prctl(37, ctypes.byref(value), 0, 0, 0)
    return value.value


def inner_tree(me):
    """(pid, parent, group, session) of all below us, by their innermost numbers."""
    rows = []
    for child in read(f"/proc/{me}/task/{me}/children").split():
        text = read(f"/proc/{child}/status")
        number = lambda key: int(re.search(key + r":(.*)", text)[1].split()[-1])
        parent = int(re.search(r"NSpid:(.*)", read(f"/proc/{me}/status"))[1].split()[-1])
        rows.append([number("NSpid"), parent, number("NSpgid"), number("NSsid")])
        rows += inner_tree(int(child))
    return rows


def differences(where, a, b):
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            differences(f"{where}/{key}", a[key], b[key])
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for index, (x, y) in enumerate(zip(a, b)):
            differences(f"{where}[{index}]", x, y)
    elif a != b:
        bad(f"{where}: before {json.dumps(a)} after {json.dumps(b)}")


moved = False


def on_move(*_):
    global moved
    moved = True


signal.signal(signal.SIGUSR1, on_move)
before = snapshot()
log.write(f"ready {PID}\n")
while not moved:
    time.sleep(0.02)
log.write("moved\n")
try:
    after = snapshot()
    differences("", before, after)
except Exception as error:
    bad(f"snapshot: {traceback.format_exc()!r}")


# --- what is inside ---------------------------------------------------------------------------------------------
def check(name, got, want):
    if got != want:
        bad(f"{name}: {got!r} instead of {want!r}")


def checks():
    a = struct.unpack("<Q", shared[0:8])[0]
    time.sleep(0.05)
    b = struct.unpack("<Q", shared[0:8])[0]
    if b <= a:
        bad(f"shared memory stands still at {a}")
    check("pread", os.pread(plain, 10, 0), b"0123456789")
    os.lseek(copy, 55, os.SEEK_SET)
    check("dup shares the position", os.lseek(plain, 0, os.SEEK_CUR), 55)
    check("ghost", os.pread(ghost, 15, 0), b"deleted content")
    check("ghost mapping", (ghost_map[0:15], ghost_map[4096:4100]), (b"deleted content", b"mine"))
    os.write(fifo, b"in the fifo")
    check("fifo", os.read(fifo, 100), b"in the fifo")
    check("pipe", os.read(pipe_r, 100), b"in the pipe")
    check("pipe size", fcntl.fcntl(pipe_w, 1032), 8192)
    check("lone pipe", os.read(lone_r, 100) + os.read(lone_r, 100), b"tail")
    check("urandom", len(os.read(random_fd, 8)), 8)
    check("semaphore", struct.unpack("<Q", os.read(semaphore, 8))[0], 1)
    if "nobody" not in sys.argv:
        check("pidfd", signal.pidfd_send_signal(pidfd, 0), None)
    check("memfd", os.pread(memfd, 11, 0), b"memory file")
    memfd_map[0:6] = b"MEMORY"
    check("memfd mapping", os.pread(memfd, 11, 0), b"MEMORY file")
    check("memfd seals", fcntl.fcntl(memfd, 1034), 2)
    data, fds, _, _ = socket.recv_fds(right, 100, 4)
    check("stream with a file", (data, len(fds)), (b"with a file", 1))
    check("passed file", os.pread(fds[0], 4, 0), b"0123")
    os.lseek(fds[0], 66, os.SEEK_SET)
    check("passed file is the same", os.lseek(plain, 0, os.SEEK_CUR), 66)
    check("stream", right.recv(100), b"after")
    check("end of stream", right.recv(10), b"")
    check("datagrams", [dgram_b.recv(10), dgram_b.recv(10)], [b"one", b"two"])
    udp.setblocking(False)
    check("unread datagrams", [udp.recvfrom(65536) for _ in range(4)],
          [(d, udp_peer.getsockname()) for d in (b"", b"first", b"", b"last" * 10000)])
    try:
        bad(f"one more datagram: {udp.recvfrom(65536)!r}")
    except BlockingIOError:
        pass
    check("unread in a connected socket", udp_peer.recvfrom(100), (b"to the connected", udp.getsockname()))
    port = udp6.getsockname()[1]
    check("unread over IPv4", udp6.recvfrom(100)[:2], (b"over IPv4", ("::ffff:127.0.0.1", udp.getsockname()[1], 0, 0)))
    check("unread over IPv6", udp6.recvfrom(100)[:2], (b"over IPv6", ("::1", port, 0, 0)))
    check("widow", [widow.recv(100), widow.recv(100)], [b"last words", b""])
    unix_client.send(b"hello")
    check("accepted", unix_accepted.recv(10), b"hello")
    if "nobody" not in sys.argv:
        late = socket.socket(socket.AF_UNIX)
        late.connect(unix_path)
        late.send(b"late")
        check("listener", unix_server.accept()[0].recv(10), b"late")
        check("socket mode", os.stat(unix_path).st_mode & 0o777, 0o741)
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.sendto(b"abstract", f"\0gantry-{PID}")
    check("abstract", abstract.recv(10), b"abstract")
    udp2 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp2.sendto(b"udp", udp.getsockname())
    check("udp", udp.recv(10), b"udp")
    c = socket.socket()
    c.connect(tcp.getsockname())
    s, _ = tcp.accept()
    c.send(b"tcp")
    check("tcp", s.recv(10), b"tcp")
    check("read-only page", anchor[8 * 4096:8 * 4096 + 4], b"keep")
    got = [signal.sigtimedwait([signal.SIGRTMIN + 1], 0) for _ in range(3)]
    check("queued signals", [(i.si_signo, i.si_code) for i in got], [(signal.SIGRTMIN + 1, -1)] * 3)
    check("exit status", os.waitpid(exited_pid, os.WNOHANG), (exited_pid, 7 << 8))
    check("death status", os.waitpid(killed_pid, os.WNOHANG), (killed_pid, signal.SIGTERM))
    if "nobody" not in sys.argv:
        os.kill(stopped_pid, signal.SIGCONT)
        check("continued", os.waitpid(stopped_pid, os.WCONTINUED)[0], stopped_pid)
        os.kill(stopped_pid, signal.SIGKILL)
        check("killed", os.waitpid(stopped_pid, 0), (stopped_pid, 9))
    else:
        check("filter", (libc.syscall(98, 0, 0), ctypes.get_errno()), (-1, 77))


try:
    checks()
except Exception:
    bad(traceback.format_exc().replace("\n", " | "))
log.write("done\n")
while True:
    time.sleep(1000)
