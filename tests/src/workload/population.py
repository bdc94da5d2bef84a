"""Processes, threads, descriptors and mappings in any number, each with something of its own that it checks.

Arguments: PROCESSES FAN_OUT THREADS DESCRIPTORS MAPPINGS. Process N forks N * FAN_OUT + 1 up to N * FAN_OUT + FAN_OUT, as far as
there are so many; every process has THREADS threads, the first one DESCRIPTORS descriptors and MAPPINGS mappings of one page
besides. Of ten descriptors six
are files at an offset of their own, two a pipe and two a pair of sockets with something in it.

It answers on TCP port 7000, all connections in one thread: `check` with `ok N N`, counted for each connection, and
`verify` with `ok sound` or `bad` and what is not as it was.
"""
import mmap, os, queue, select, socket, sys, threading

processes, fan_out, threads, descriptors, mappings = map(int, sys.argv[1:6])
answers = queue.SimpleQueue()


def content(number):
    return (b"%08d" % number) * 8192


def fork(number):
    """Forks the children of a process, which never return, and answers the sockets to them."""
    children = []
    for child in range(number * fan_out + 1, min(number * fan_out + fan_out, processes - 1) + 1):
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            for other in children:
                other.close()
            obey(child, fork(child), theirs)
        theirs.close()
        children.append(ours)
    return children


def thread(number, questions):
    secret = number * 7919
    while True:
        answers.put(questions.get() + secret)


def start_threads():
    threading.stack_size(256 * 1024)
    asked = [queue.SimpleQueue() for _ in range(threads - 1)]
    for number, questions in enumerate(asked):
        threading.Thread(target=thread, args=(number, questions), daemon=True).start()
    return asked


def faults(number, memory, asked, children):
    """What is not as it was in this process and below it."""
    found = [] if memory == content(number) else [f"memory of process {number}"]
    for child in children:
        child.sendall(b"verify\n")
    for turn, questions in enumerate(asked):
        questions.put(turn)
    heard = sorted(answers.get(timeout=10) for _ in asked)
    if heard != [turn + turn * 7919 for turn in range(len(asked))]:
        found.append(f"threads of process {number}")
    for child in children:
        line = child.makefile("r").readline().strip()
        if line != "ok":
            found.append(line or f"a child of process {number}")
    return found


def obey(number, children, parent):
    memory, asked = bytearray(content(number)), start_threads()
    for _ in parent.makefile("r"):
        parent.sendall((", ".join(faults(number, memory, asked, children)) or "ok").encode() + b"\n")
    os._exit(0)


def open_descriptors():
    with open("/data/content", "wb") as file:
        file.write(b"".join(b"%08d" % number for number in range(descriptors)))
    files, pairs = [], []
    for number in range(descriptors):
        if number % 10 < 6:
            fd = os.open("/data/content", os.O_RDONLY)
            os.lseek(fd, number * 8, os.SEEK_SET)
            files.append((number, fd))
        elif number % 10 in (6, 8):
            ends = os.pipe() if number % 10 == 6 else [end.detach() for end in socket.socketpair()]
            os.write(ends[1], b"%08d" % number)
            pairs.append((number, *ends))
    return files, pairs


def wrong_descriptors(files, pairs):
    wrong = []
    for number, fd in files:
        if os.lseek(fd, 0, os.SEEK_CUR) != number * 8 or os.read(fd, 8) != b"%08d" % number:
            wrong.append(f"file {number}")
        os.lseek(fd, number * 8, os.SEEK_SET)
    for number, reader, writer in pairs:
        if os.read(reader, 64) != b"%08d" % number:
            wrong.append(f"pair {number}")
        os.write(writer, b"%08d" % number)
    return wrong


def make_mappings():
    """Every other one is for reading alone, so that no two become one."""
    made = []
    for number in range(mappings):
        rights = mmap.PROT_READ | (mmap.PROT_WRITE if number % 2 else 0)
        made.append(mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=rights))
        if number % 2:
            made[-1].write(b"%08d" % number)
    return made


def wrong_mappings(made):
    return [
        f"mapping {number}"
        for number, mapping in enumerate(made)
        if mapping[:8] != (b"%08d" % number if number % 2 else bytes(8))
    ]


children = fork(0)
memory, asked = bytearray(content(0)), start_threads()
files, pairs = open_descriptors()
made = make_mappings()
listener = socket.create_server(("0.0.0.0", 7000), backlog=4096)
watch = select.epoll()
watch.register(listener, select.EPOLLIN)
# The connection, what has been read of its next line, and how many lines it has been answered.
connections = {}
while True:
    for fd, _ in watch.poll():
        if fd == listener.fileno():
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            watch.register(connection, select.EPOLLIN)
            connections[connection.fileno()] = [connection, b"", 0]
            continue
        state = connections[fd]
        try:
            read = state[0].recv(4096)
        except ConnectionError:
            read = b""
        if not read:
            watch.unregister(fd)
            del connections[fd]
            state[0].close()
            continue
        *lines, state[1] = (state[1] + read).split(b"\n")
        for line in lines:
            state[2] += 1
            answer = f"ok {state[2]} {state[2]}"
            if line == b"verify":
                found = faults(0, memory, asked, children) + wrong_descriptors(files, pairs) + wrong_mappings(made)
                answer = f"bad {len(found)}: {', '.join(found[:10])}" if found else "ok sound"
            state[0].sendall(answer.encode() + b"\n")
