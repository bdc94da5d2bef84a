"""A program that mounts for itself and checks that everything stays as it made it.

A tmpfs with content, a bind of a directory and of a single file, a read-only remount, an over-mount, peers and a
process that lives in a chroot on the tmpfs; files are open and mapped on them. It answers `check\n` on TCP port 7000
with `ok N TOTAL` or with what is wrong.
"""
import ctypes, errno, hashlib, mmap, os, socket, struct, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
RDONLY, NOSUID, NOEXEC, REMOUNT, BIND, SHARED, SLAVE = 1, 2, 8, 32, 4096, 1 << 20, 1 << 19
errors = []
counts = {"append": 0, "map": 0, "look": 0, "jail": 0}


def fail(text):
    errors.append(text)


def mount(source, target, kind=None, flags=0, data=None):
    def text(value):
        return value.encode() if value is not None else None

    if libc.mount(text(source), text(target), text(kind), flags, text(data)) != 0:
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}")


for name in ["mem", "dir", "bound", "covered", "peer", "slave"]:
    os.makedirs(f"/data/{name}", exist_ok=True)
with open("/data/dir/kept", "w") as file:
    file.write("kept")
with open("/data/single", "w") as file:
    file.write("single")
open("/data/single-target", "w").close()

mount("mine", "/data/mem", "tmpfs", NOSUID, "size=64m,mode=750")
os.makedirs("/data/mem/jail/etc")
with open("/data/mem/jail/etc/hello", "w") as file:
    file.write("hello")
blob = os.urandom(8 << 20)
digest = hashlib.sha256(blob).digest()
with open("/data/mem/blob", "wb") as file:
    file.write(blob)
del blob

mount("/data/dir", "/data/bound", None, BIND)
mount(None, "/data/bound", None, REMOUNT | BIND | RDONLY | NOEXEC)
mount("/data/single", "/data/single-target", None, BIND)
with open("/data/covered/below", "w") as file:
    file.write("below")
mount("first", "/data/covered", "tmpfs", 0, "size=1m")
with open("/data/covered/first", "w") as file:
    file.write("first")
mount("second", "/data/covered", "tmpfs", 0, "size=1m")
with open("/data/covered/second", "w") as file:
    file.write("second")
mount(None, "/data/mem", None, SHARED)
mount("/data/mem", "/data/peer", None, BIND)
mount("/data/mem", "/data/slave", None, BIND)
mount(None, "/data/slave", None, SLAVE)

# Open on each of them.
reader = open("/data/bound/kept", "rb", buffering=0)
single = open("/data/single-target", "r+b", buffering=0)
second = open("/data/covered/second", "rb", buffering=0)
counter = open("/data/mem/counter", "w+b", buffering=0)
counter.write(bytes(4096))
memory = mmap.mmap(counter.fileno(), 4096)

jail_r, jail_w = os.pipe()
if os.fork() == 0:
    os.close(jail_r)
    os.chroot("/data/mem/jail")
    os.chdir("/")
    while True:
        with open("/etc/hello") as file:
            good = file.read() == "hello" and os.listdir("/") == ["etc"]
        os.write(jail_w, b"y" if good else b"n")
        time.sleep(0.005)
os.close(jail_w)


def jailed():
    while True:
        answer = os.read(jail_r, 1)
        if answer != b"y":
            fail(f"chroot: {answer!r}")
            return
        counts["jail"] += 1


def append():
    written = hashlib.sha256()
    number = 0
    with open("/data/mem/log", "w+b", buffering=0) as file:
        while True:
            number += 1
            line = b"line %d\n" % number
            file.write(line)
            written.update(line)
            if number % 20 == 0:
                with open("/data/peer/log", "rb") as again:
                    if hashlib.sha256(again.read()).digest() != written.digest():
                        fail("tmpfs: another content")
            if number > 3000:
                file.seek(0)
                file.truncate()
                written = hashlib.sha256()
                number = 0
            counts["append"] += 1
            time.sleep(0.002)


def mapped():
    number = 0
    while True:
        number += 1
        memory[:8] = struct.pack("<Q", number)
        with open("/data/slave/counter", "rb") as again:
            if struct.unpack("<Q", again.read(8))[0] != number:
                fail("mapping: the file has another content")
        counts["map"] += 1
        time.sleep(0.002)


def info():
    """Mounts of ours without what a node names for itself."""
    seen, groups = [], {}
    for line in open("/proc/self/mountinfo"):
        left, right = line.rstrip("\n").split(" - ")
        fields = left.split(" ")
        if fields[4].startswith("/data/"):
            tags = []
            for tag in fields[6:]:
                kind, _, number = tag.partition(":")
                tags.append((kind, groups.setdefault(number, len(groups))))
            kind, source, data = right.split(" ", 2)
            seen.append((fields[4], fields[5], tags, kind, source if kind == "tmpfs" else "", data if kind == "tmpfs" else ""))
    return sorted(seen)


def look():
    expected = info()
    if len(expected) != 7:
        fail(f"mountinfo: {expected}")
    while True:
        now = info()
        if now != expected:
            fail(f"mountinfo: {now} instead of {expected}")
        try:
            open("/data/bound/new", "w")
            fail("the bind is writable")
        except OSError as error:
            if error.errno != errno.EROFS:
                fail(f"the bind: {error}")
        for file, content in [(reader, b"kept"), (single, b"single"), (second, b"second")]:
            if os.pread(file.fileno(), 100, 0) != content:
                fail(f"open file {content!r}: another content")
        if os.listdir("/data/covered") != ["second"]:
            fail(f"over-mount: {os.listdir('/data/covered')}")
        with open("/data/mem/blob", "rb") as file:
            if hashlib.sha256(file.read()).digest() != digest:
                fail("tmpfs: the large file has another content")
        counts["look"] += 1
        time.sleep(0.1)


for target in [jailed, append, mapped, look]:
    threading.Thread(target=target, daemon=True).start()

server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("0.0.0.0", 7000))
server.listen()
print("ready", flush=True)


def uncover():
    """What lay below; ends the checks of the mounts."""
    for expected in ["first", "below"]:
        if libc.umount2(b"/data/covered", 2) != 0:
            return f"bad umount: {ctypes.get_errno()}"
        if os.listdir("/data/covered") != [expected]:
            return f"bad {os.listdir('/data/covered')} instead of {expected}"
    return "ok below"


def serve(connection):
    answers = 0
    stream = connection.makefile("rwb")
    for line in stream:
        if line == b"uncover\n":
            stream.write(uncover().encode() + b"\n")
            stream.flush()
            continue
        answers += 1
        now = dict(counts)
        if errors:
            stream.write(f"bad {errors[:3]}\n".encode())
        else:
            stream.write(f"ok {answers} {sum(now.values())} {' '.join(f'{k}={v}' for k, v in now.items())}\n".encode())
        stream.flush()


while True:
    accepted, _ = server.accept()
    threading.Thread(target=serve, args=(accepted,), daemon=True).start()
