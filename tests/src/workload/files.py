"""A program that changes files all the time and knows what must be in them.

Its arguments are directories; each has a thread of its own. It answers `check\n` on TCP port 7000 with `ok N TOTAL`
(both rise) or with what is wrong.
"""
import mmap, os, random, socket, sys, threading, time

errors = []
counts = {}


class Worker(threading.Thread):
    def __init__(self, root):
        super().__init__(daemon=True)
        self.root = os.fsencode(root)
        self.random = random.Random(root)
        # Names to what is in them; two names of one file share the list.
        self.files = {}
        self.made = 0
        # Written through memory alone, and through a descriptor that stays open.
        self.mapped = os.open(self.path(b"mapped"), os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.mapped, 65536)
        self.memory = mmap.mmap(self.mapped, 65536)
        self.expected = bytearray(65536)
        self.log = os.open(self.path(b"log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.logged = b""
        counts[root] = 0

    def path(self, name):
        return os.path.join(self.root, name)

    def step(self):
        what = self.random.randrange(10)
        name = self.random.choice(list(self.files)) if self.files else None
        if what < 3 or name is None:
            if len(self.files) > 40:
                return self.remove(name)
            self.made += 1
            name = b"f %d" % self.made
            content = self.random.randbytes(self.random.randrange(30000))
            with open(self.path(name), "wb") as file:
                file.write(content)
            self.files[name] = [content]
        elif what == 3:
            self.remove(name)
        elif what == 4:
            self.made += 1
            other = b"r%d" % self.made
            os.rename(self.path(name), self.path(other))
            self.files[other] = self.files.pop(name)
        elif what == 5:
            self.made += 1
            other = b"l%d" % self.made
            os.link(self.path(name), self.path(other))
            self.files[other] = self.files[name]
        elif what == 6:
            # Far behind the end: a hole.
            old = self.files[name][0]
            at = len(old) + self.random.randrange(100000)
            if at < 200000:
                with open(self.path(name), "r+b") as file:
                    os.pwrite(file.fileno(), b"end", at)
                self.files[name][0] = old + bytes(at - len(old)) + b"end"
        elif what == 7:
            at = self.random.randrange(65536)
            value = self.random.randrange(256)
            self.memory[at] = value
            self.expected[at] = value
        elif what == 8:
            line = b"%d\n" % self.made
            os.write(self.log, line)
            self.logged += line
        else:
            os.truncate(self.path(name), 100)
            self.files[name][0] = self.files[name][0][:100].ljust(100, b"\0")

    def remove(self, name):
        os.remove(self.path(name))
        del self.files[name]

    def verify(self):
        there = set(os.listdir(self.root)) - {b"mapped", b"log", b".gantry-shared"}
        if there != set(self.files):
            return "the names are %r, not %r" % (sorted(there), sorted(self.files))
        for name, content in self.files.items():
            with open(self.path(name), "rb") as file:
                if file.read() != content[0]:
                    return "the content of %r is wrong" % name
        with open(self.path(b"mapped"), "rb") as file:
            if file.read() != self.expected or self.memory[:] != self.expected:
                return "the mapped file is wrong"
        with open(self.path(b"log"), "rb") as file:
            if file.read() != self.logged:
                return "the log is wrong"
        return None

    def run(self):
        try:
            while True:
                for _ in range(5):
                    self.step()
                wrong = self.verify()
                if wrong:
                    errors.append("%r: %s" % (self.root, wrong))
                    return
                counts[os.fsdecode(self.root)] += 1
                time.sleep(0.002)
        except Exception as error:
            errors.append("%r: %r" % (self.root, error))


def answer(connection):
    seen = None
    number = 0
    for _ in connection.makefile("rb"):
        # Every directory must have been written to and compared since the last answer.
        until = time.monotonic() + 20
        while not errors and seen is not None and any(counts[key] <= seen[key] for key in counts):
            if time.monotonic() > until:
                errors.append("no progress: %r" % counts)
            time.sleep(0.001)
        seen = dict(counts)
        number += 1
        text = "wrong: " + "; ".join(errors) if errors else "ok %d %d" % (number, sum(counts.values()))
        connection.sendall(text.encode(errors="replace") + b"\n")


for directory in sys.argv[1:]:
    Worker(directory).start()
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", 7000))
listener.listen(16)
print("ready", flush=True)
while True:
    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
