"""Sessions with a PostgreSQL server that check every answer. argv: address, port, how many.

A line on standard input asks for a verdict, its end ends the sessions; the answer to either is one line of JSON."""
import json, socket, struct, sys, threading, time

ADDRESS, PORT, SESSIONS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


class Session:
    def __init__(self):
        self.socket = socket.create_connection((ADDRESS, PORT), 10)
        self.socket.settimeout(30)
        self.stream = self.socket.makefile("rb")
        self.send(b"", struct.pack("!I", 196608) + b"user\0nobody\0database\0postgres\0\0")
        self.answer()

    def send(self, kind, body):
        self.socket.sendall(kind + struct.pack("!I", len(body) + 4) + body)

    def answer(self):
        """The rows up to the next time that the server is ready."""
        rows = []
        while True:
            head = self.stream.read(5)
            if len(head) < 5:
                raise RuntimeError("the server has closed the connection")
            kind, length = head[:1], struct.unpack("!I", head[1:])[0]
            body = self.stream.read(length - 4)
            if kind == b"E":
                raise RuntimeError(f"the server says {body!r}")
            if kind == b"D":
                (count,), at, row = struct.unpack_from("!H", body), 2, []
                for _ in range(count):
                    (size,) = struct.unpack_from("!i", body, at)
                    row.append(body[at + 4 : at + 4 + size].decode() if size >= 0 else None)
                    at += 4 + max(size, 0)
                rows.append(row)
            if kind == b"Z":
                return rows

    def ask(self, query):
        self.send(b"Q", query.encode() + b"\0")
        return self.answer()


lock, stop = threading.Lock(), threading.Event()
verdict = {"replies": 0, "longest_gap_ms": 0.0, "errors": []}


def work(number):
    try:
        session = Session()
        # The session's own: a temporary table, a prepared statement, a lock.
        session.ask("create temporary table mine (n int primary key, text text)")
        session.ask(f"create table if not exists shared_{number} (n int primary key, square bigint)")
        session.ask("prepare put(int, text) as insert into mine values ($1, $2)")
        session.ask(f"select pg_advisory_lock({number})")
        turn = 0
        while not stop.is_set():
            began = time.monotonic()
            session.ask("begin")
            session.ask(f"insert into shared_{number} values ({turn}, {turn * turn})")
            session.ask(f"execute put({turn}, repeat('{turn % 10}', 500))")
            session.ask("commit")
            turn += 1
            expected = [[str(turn), str(sum(n * n for n in range(turn)))]]
            found = session.ask(f"select count(*), sum(square) from shared_{number}")
            if found != expected:
                raise RuntimeError(f"{found} instead of {expected}")
            found = session.ask(f"select text from mine where n = {turn // 2}")
            if found != [[str(turn // 2 % 10) * 500]]:
                raise RuntimeError(f"row {turn // 2} is {found}")
            held = session.ask(
                f"select count(*) from pg_locks where locktype = 'advisory' and objid = {number} and granted"
            )
            if held != [["1"]]:
                raise RuntimeError(f"the lock is held {held} times")
            with lock:
                verdict["replies"] += 1
                verdict["longest_gap_ms"] = max(verdict["longest_gap_ms"], (time.monotonic() - began) * 1e3)
    except Exception as error:
        with lock:
            verdict["errors"].append(f"session {number}: {error}")


threads = [threading.Thread(target=work, args=(number,)) for number in range(SESSIONS)]
for thread in threads:
    thread.start()
for _ in sys.stdin:
    with lock:
        before = verdict["replies"]
    end = time.monotonic() + 40
    while time.monotonic() < end and not verdict["errors"] and verdict["replies"] < before + SESSIONS:
        time.sleep(0.01)
    with lock:
        print(json.dumps(verdict), flush=True)
stop.set()
for thread in threads:
    thread.join()
print(json.dumps(verdict), flush=True)
