"""A program that changes its memory in every way that page tables do not tell of by themselves, and knows what must be in it.

It answers `check\n` on TCP port 7000 with `ok N TOTAL` (both rise) or with what is wrong.
"""
import ctypes, errno, os, random, socket, threading, time

PAGE = 4096
# What one page table maps: mremap(2) moves it as a whole.
SIZE = 2 << 20
PAGES = SIZE // PAGE
ANONYMOUS, FIXED, PRIVATE, SHARED = 0x20, 0x10, 0x02, 0x01
DONTNEED, MAYMOVE, MOVE_FIXED = 4, 1, 2

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

errors = []
passes = 0
pick = random.Random(1)
tag = 0


def done(result):
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def place(address, length, kind):
    flags = ANONYMOUS | kind | (FIXED if address else 0)
    return done(libc.mmap(address, length, 3, flags, -1, 0))


class Region:
    def __init__(self, address, kind):
        self.address = place(address, SIZE, kind)
        self.expected = [0] * PAGES

    def words(self, page):
        at = self.address + page * PAGE
        return ctypes.c_uint64.from_address(at), ctypes.c_uint64.from_address(at + PAGE - 8)

    def write(self, count):
        global tag
        for _ in range(count):
            page = pick.randrange(PAGES)
            tag += 1
            for word in self.words(page):
                word.value = tag
            self.expected[page] = tag

    def part(self):
        first = pick.randrange(PAGES)
        return first, pick.randrange(1, min(64, PAGES - first) + 1)

    def verify(self, first):
        for page in range(first, PAGES, 8):
            expected = self.expected[page]
            seen = [word.value for word in self.words(page)]
            if seen != [expected, expected]:
                return "page %d at %#x holds %r instead of %d" % (page, self.address, seen, expected)


# Places of whole page tables, with gaps between them, and one more for what is on its way.
base = place(None, 12 * SIZE, PRIVATE)
done(libc.munmap(base, 12 * SIZE))
base = (base + SIZE - 1) // SIZE * SIZE
spare = base + 10 * SIZE
private = [Region(base + 2 * n * SIZE, PRIVATE) for n in range(4)]
shared = Region(base + 8 * SIZE, SHARED)
for region in private + [shared]:
    region.write(2 * PAGES)


def drop():
    region = pick.choice(private)
    first, count = region.part()
    done(libc.madvise(region.address + first * PAGE, count * PAGE, DONTNEED))
    region.expected[first:first + count] = [0] * count
    for page in range(first, first + count, 2):
        region.words(page)[0].value


def move(source, target):
    done(libc.mremap(source, SIZE, SIZE, MAYMOVE | MOVE_FIXED, target))


def swap():
    one, other = pick.sample(private, 2)
    try:
        move(one.address, spare)
    except OSError as error:
        # Several mappings by now, which older kernels do not move at once.
        if error.errno == errno.EFAULT:
            return
        raise
    try:
        move(other.address, one.address)
    except OSError as error:
        move(spare, one.address)
        if error.errno == errno.EFAULT:
            return
        raise
    move(spare, other.address)
    one.expected, other.expected = other.expected, one.expected


def replace():
    region = pick.choice(private)
    first, count = pick.choice([region.part(), (0, PAGES)])
    place(region.address + first * PAGE, count * PAGE, PRIVATE)
    region.expected[first:first + count] = [0] * count
    # The new mapping is joined to its neighbours.
    for protection in (1, 3):
        done(libc.mprotect(region.address, SIZE, protection))


def unmap():
    done(libc.madvise(shared.address, SIZE, DONTNEED))


def change():
    global passes
    try:
        while not errors:
            for region in private + [shared]:
                region.write(8)
            pick.choice([drop, swap, swap, replace, unmap])()
            wrong = [text for text in (region.verify(passes % 8) for region in private + [shared]) if text]
            errors.extend(wrong)
            passes += 1
            time.sleep(0.05)
    except Exception as error:
        errors.append(repr(error))


def answer(connection):
    number = 0
    for _ in connection.makefile("rb"):
        number += 1
        text = "wrong: " + "; ".join(errors) if errors else "ok %d %d" % (number, passes)
        connection.sendall(text.encode() + b"\n")


threading.Thread(target=change, daemon=True).start()
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", 7000))
listener.listen(16)
print("ready", flush=True)
while True:
    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
