"""A database in small: eight workers forked from one parent share 64 MiB of anonymous memory and one listening socket.

Each worker accepts on TCP port 7000, one connection at a time. For every `check` it compares four pages that anybody may
have written and writes four of its own anew, and answers `ok N TOTAL`: how many lines this connection has been answered,
and how many pages the worker has written. `verify` compares all pages, and their versions with what the workers counted;
nobody may write then. It is answered by `ok sound` or `bad` and what is wrong.
"""
import mmap, os, random, socket, struct, zlib

WORKERS, PAGE = 8, 4096
PAGES = (64 << 20) // PAGE
# The first page of each worker's share is its counter.
SHARE = PAGES // WORKERS
region = mmap.mmap(-1, PAGES * PAGE)


def page_of(number, version):
    content = struct.pack("<QQ", number, version) * (PAGE // 16 - 1) + struct.pack("<Q", version)
    return content + struct.pack("<Q", zlib.crc32(content))


def version_at(number):
    """The version of a page; None when it is not what it should be."""
    page = region[number * PAGE:(number + 1) * PAGE]
    version = struct.unpack_from("<Q", page, 8)[0]
    return version if page == page_of(number, version) else None


def write(number, version):
    region[number * PAGE:(number + 1) * PAGE] = page_of(number, version)


def counter(worker):
    return struct.unpack_from("<Q", region, worker * SHARE * PAGE)[0]


def own(worker):
    return range(worker * SHARE + 1, (worker + 1) * SHARE)


def transaction(worker, chance):
    for _ in range(4):
        number = chance.choice(own(chance.randrange(WORKERS)))
        # Its writer may be in the middle of it.
        if all(version_at(number) is None for _ in range(1000)):
            return f"bad page {number}"
    for _ in range(4):
        number = chance.choice(own(worker))
        version = version_at(number)
        if version is None:
            return f"bad page {number} of worker {worker}"
        write(number, version + 1)
        struct.pack_into("<Q", region, worker * SHARE * PAGE, counter(worker) + 1)
    return None


def verify():
    for worker in range(WORKERS):
        versions = [version_at(number) for number in own(worker)]
        if None in versions:
            return f"bad page of worker {worker}"
        if sum(versions) != counter(worker):
            return f"bad count of worker {worker}: {sum(versions)} and {counter(worker)}"
    return "ok sound"


def serve(worker, connection, chance):
    for answered, line in enumerate(connection.makefile("rb"), 1):
        if line == b"verify\n":
            answer = verify()
        else:
            answer = transaction(worker, chance) or f"ok {answered} {counter(worker)}"
        connection.sendall(answer.encode() + b"\n")


def work(worker, listener):
    chance = random.Random(worker)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            serve(worker, connection, chance)
        except ConnectionError:
            pass
        connection.close()


for worker in range(WORKERS):
    for number in own(worker):
        write(number, 0)
listener = socket.create_server(("0.0.0.0", 7000))
for worker in range(WORKERS):
    if os.fork() == 0:
        work(worker, listener)
while True:
    os.wait()
