# Checks locks, watches and paths before and after a move. argv: log file, file that says "go on".
import ctypes, errno, fcntl, os, socket, struct, sys, time

log_path, go_path = sys.argv[1:3]
log = open(log_path, "a", buffering=1)
libc = ctypes.CDLL(None, use_errno=True)
O_PATH, F_OFD_SETLK = 0o10000000, 37


def check(what, good):
    log.write(("ok " if good else "BAD ") + what + "\n")


def refused(work):
    try:
        work()
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


def flock(kind, start, length):
    return struct.pack("hhqqi4x", kind, 0, start, length, 0)


# flock(2) with one who waits for it.
whole = os.open("/mnt/f", os.O_RDWR)
fcntl.flock(whole, fcntl.LOCK_EX)
waiter = os.fork()
if waiter == 0:
    own = os.open("/mnt/f", os.O_RDONLY)
    fcntl.flock(own, fcntl.LOCK_SH)
    log.write("ok the one who waited has the lock\n")
    while True:
        time.sleep(1000)
# POSIX locks of two processes, taken through descriptors that are shared.
ranges = os.open("/mnt/g", os.O_RDWR)
other = os.fork()
if other == 0:
    fcntl.lockf(ranges, fcntl.LOCK_SH, 10, 30)
    while True:
        time.sleep(1000)
fcntl.lockf(ranges, fcntl.LOCK_EX, 10, 10)
ofd = os.open("/mnt/h", os.O_RDWR)
fcntl.fcntl(ofd, F_OFD_SETLK, flock(fcntl.F_WRLCK, 5, 0))
# Paths.
paths = [os.open("/mnt/d", O_PATH), os.open("/mnt/f", O_PATH), os.open("/mnt/link", O_PATH | os.O_NOFOLLOW),
         os.open("/dev/null", O_PATH)]
# Watches; the second is taken away.
watch = libc.inotify_init1(os.O_NONBLOCK)
wd = [libc.inotify_add_watch(watch, name, 0x302) for name in (b"/mnt/d", b"/mnt/g", b"/mnt/h")]
libc.inotify_rm_watch(watch, wd[1])
os.read(watch, 1000)
# Netlink: one that listens, one that is not bound.
listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
listening.setsockopt(270, 11, 1)  # NETLINK_EXT_ACK
listening.bind((4321, 1))
listening.setsockopt(270, 1, 33)  # NETLINK_ADD_MEMBERSHIP
unbound = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 15)


def test(fd, kind, start, length):
    """Whose lock is in the way, as its type, start and length."""
    return struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, flock(kind, start, length)))


def state():
    fresh = os.open("/mnt/f", os.O_RDONLY)
    again = os.open("/mnt/h", os.O_RDWR)
    found = [refused(lambda: fcntl.flock(fresh, fcntl.LOCK_SH | fcntl.LOCK_NB)),
             refused(lambda: fcntl.fcntl(again, F_OFD_SETLK, flock(fcntl.F_RDLCK, 7, 1))),
             test(ranges, fcntl.F_WRLCK, 0, 0), [os.readlink("/proc/self/fd/%d" % fd) for fd in paths],
             [os.fstat(fd).st_mode for fd in paths], os.readlink("mnt/link", dir_fd=os.open("/", O_PATH))]
    found += [listening.getsockname(), listening.getsockopt(270, 9, 8), listening.getsockopt(270, 11),
              unbound.getsockname(), unbound.type, unbound.getblocking()]
    os.close(again)
    os.close(fresh)
    if os.fork() == 0:
        try:
            fcntl.lockf(ranges, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 12)
            log.write("BAD the range is not locked\n")
        except OSError:
            pass
        os._exit(0)
    os.wait()
    return found


while not any(" -> FLOCK" in line for line in open("/proc/locks")):
    time.sleep(0.01)
before = state()
check("locked %r" % before, before[:2] == [True, True] and before[2][2:4] == (30, 10))
log.write("ready\n")
while not os.path.exists(go_path):
    time.sleep(0.01)
after = state()
check("state %r %r" % (before, after), before == after)
# One that waits is shown as blocked.
check("waits", any(" -> FLOCK" in line for line in open("/proc/locks")))
try:
    os.read(watch, 1000)
    check("no event came of the move", False)
except BlockingIOError:
    pass
os.open("/mnt/d/new", os.O_CREAT, 0o600)
event = struct.unpack_from("iIII", os.read(watch, 1000))
check("event %r" % (event,), event[:2] == (wd[0], 0x100))
open("/mnt/g", "a").write("x")
os.write(ofd, b"x")
event = struct.unpack_from("iIII", os.read(watch, 1000))
check("event %r" % (event,), event[:2] == (wd[2], 0x2))
listening.send(struct.pack("IHHIIBBHiII", 32, 18, 0x301, 7, 0, 0, 0, 0, 0, 0, 0))  # RTM_GETLINK, dump
check("links", b"lo\0" in listening.recv(65536))
fcntl.flock(whole, fcntl.LOCK_UN)
time.sleep(0.3)
log.write("done\n")
while True:
    time.sleep(1000)
