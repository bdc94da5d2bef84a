"""An interactive ssh session that checks every answer. argv: address, private key.

Each line on standard input asks for a full check (window size, job control), answered with one line of JSON; the end of
standard input ends the session."""
import fcntl, json, os, pty, re, select, struct, sys, termios, threading, time

ADDRESS, KEY = sys.argv[1:3]
PATIENCE = 40


class Session:
    def __init__(self):
        self.seen = b""
        pid, self.fd = pty.fork()
        if pid == 0:
            os.environ["TERM"] = "dumb"
            os.execlp("ssh", "ssh", "-i", KEY, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                      "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes", "root@" + ADDRESS)
        self.resize(24, 80)
        self.expect(rb"[#$] $")

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, data):
        os.write(self.fd, data)

    def expect(self, pattern, patience=PATIENCE):
        end = time.monotonic() + patience
        while True:
            found = re.search(pattern, self.seen)
            if found:
                self.seen = self.seen[found.end():]
                return found
            if time.monotonic() > end:
                raise RuntimeError(f"{pattern!r} did not come; there is {self.seen[-500:]!r}")
            if select.select([self.fd], [], [], 0.5)[0]:
                try:
                    got = os.read(self.fd, 65536)
                except OSError:
                    got = b""
                if not got:
                    raise RuntimeError(f"the session has ended: {self.seen[-500:]!r}")
                # The shell asks where the cursor is; nobody has to answer.
                self.seen = (self.seen + got).replace(b"\x1b[6n", b"")

    def cat(self):
        """A program that reads lines, when it has the terminal."""
        self.send(b"cat\n")
        self.expect(rb"cat\r\n")
        # The shell may still have the terminal to itself, without echo.
        self.send(b"first\n")
        self.expect(rb"first\r\n")

    def stop(self):
        """Ctrl-Z, until the job has the terminal and stops."""
        end = time.monotonic() + PATIENCE
        while True:
            self.send(b"\x1a")
            try:
                self.expect(rb"Stopped .*sleep 4321", 3)
                break
            except RuntimeError:
                if time.monotonic() > end:
                    raise
        self.expect(rb"[#$] $")

    def ask(self, line, pattern):
        self.send(line + b"\n")
        found = self.expect(pattern)
        self.expect(rb"[#$] $")
        return found


lock, stop = threading.Lock(), threading.Event()
verdict = {"replies": 0, "longest_gap_ms": 0.0, "errors": []}


def questions(session):
    """Asks on and on."""
    number = 0
    while not stop.is_set() and not verdict["errors"]:
        number += 1
        with lock:
            asked = time.monotonic()
            try:
                session.ask(b"echo A$((%d * 7))B" % number, rb"A%dB\r\n" % (number * 7))
            except Exception as error:
                verdict["errors"].append(f"question {number}: {error}")
                return
            verdict["replies"] += 1
            gap = (time.monotonic() - asked) * 1000
            verdict["longest_gap_ms"] = max(verdict["longest_gap_ms"], gap)
        time.sleep(0.03)


def full_check(session, turn):
    rows, columns = 30 + turn, 100 + turn
    session.resize(rows, columns)
    end = time.monotonic() + PATIENCE
    # The new size comes with a message of its own.
    while session.ask(b"stty size", rb"(\d+ \d+)\r\n").group(1) != b"%d %d" % (rows, columns):
        if time.monotonic() > end:
            raise RuntimeError(f"the window did not become {rows} {columns}")
    session.ask(b"tty", rb"/dev/pts/\d+\r\n")
    session.ask(b"grep State: /proc/%s/status" % job, rb"T \(stopped\)")
    session.ask(b"jobs", rb"Stopped .*sleep 4321")
    # It goes on in the foreground, and Ctrl-Z stops it again.
    session.send(b"fg\n")
    session.expect(rb"sleep 4321.\r\n")
    session.stop()
    session.cat()
    session.send(b"some line\n")
    session.expect(rb"some line\r\nsome line\r\n")
    session.send(b"\x03")
    session.expect(rb"[#$] $")
    session.ask(b"echo turn $((%d + 0)) of the session > /dev/console; echo $((1 + 1))done" % turn, rb"2done")


talking, typing = Session(), Session()
talking.send(b"sh -c 'echo started $$; exec sleep 4321'\n")
job = talking.expect(rb"\nstarted (\d+)\r\n").group(1)
talking.stop()
typing.cat()
typing.send(b"half a l")
typing.expect(rb"half a l$")
asking = threading.Thread(target=questions, args=(talking,))
asking.start()
turn = 0
for _ in sys.stdin:
    turn += 1
    with lock:
        try:
            full_check(talking, turn)
        except Exception as error:
            verdict["errors"].append(f"turn {turn}: {error}")
    print(json.dumps(verdict), flush=True)
stop.set()
asking.join()
try:
    typing.send(b"ine\n")
    typing.expect(rb"^ine\r\nhalf a line\r\n")
    typing.send(b"\x04")
    typing.expect(rb"[#$] $")
except Exception as error:
    verdict["errors"].append(f"the line that was being typed: {error}")
print(json.dumps(verdict), flush=True)
