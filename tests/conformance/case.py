"""What runs each program of the conformance suite.

A program is a file with one function that is marked with @case: it sets something up, yields, and checks after the yield
that all of it is still so, with same() or assert. What it yields, if anything, is called again and again in between: it
changes the state, and what the program expects with it. Its first line, the docstring, says what it is about; comments
of the form `# key: value` tell the suite more:

    # refused: TEXT       cannot be carried: it must be refused with a reason that has TEXT in it, and be as before
    # refused-here: WAYS: TEXT   the same in some ways only (host, boxed, move)
    # lost: TEXT          is neither carried nor noticed, and what is lost has TEXT in it
    # not: WAYS: REASON   cannot be tried in these ways
    # needs: PROGRAM ...  must be installed
    # with: CAPABILITY ...  its container gets these
    # huge: NUMBER        so many huge pages of 2 MiB must be free for it and a copy of it; the suite sees to it

    case.py [--init] PROGRAM SCRATCH

It mounts nothing: without a checkpoint, and in the way "host", it is in the namespaces of the machine, and its scratch
directory is removed in the end with all that is below it.

The program says `ready PID` on standard output and, after SIGUSR2, `ok` or what was lost. With --init it is the child of
a first process that reaps what is left to it.
"""
import ast
import ctypes
import errno
import mmap
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
_program = None
SCRATCH = ""


class Lost(Exception):
    """Something is not as it was."""


def case(function):
    global _program
    _program = function
    return function


def same(what, found, expected):
    if found != expected:
        raise Lost(f"{what}: {found!r} instead of {expected!r}")


def syscall(number, *args):
    """A system call by its number; OSError when it fails."""
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"system call {number}: {os.strerror(error)}")
    return result


def prctl(option, *args):
    return syscall(157, option, *(list(args) + [0] * (4 - len(args))))


def read(path):
    with open(path, "rb") as file:
        return file.read().decode()


def status(field, pid="self"):
    """A line of /proc/PID/status."""
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith(field + ":"):
            return line.split(":", 1)[1].strip()
    raise KeyError(field)


def scratch(name):
    """A path in a directory of the program's own."""
    return os.path.join(SCRATCH, name)


def ended_by(work):
    """Runs work() in a child, which ends with it."""
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 99
    os._exit(code)


def fork(work):
    """A child that runs work() and never returns from it; its pid."""
    return os.fork() or ended_by(work)


def clone(flags, work):
    """As fork, with what flags of clone(2) make the child share with this process."""
    pid = syscall(56, flags | signal.SIGCHLD, 0, 0, 0, 0)
    return pid or ended_by(work)


class Asked(threading.Thread):
    """A thread that does what it is asked. Its first task tells nothing."""

    def __init__(self, first=lambda: None):
        super().__init__(daemon=True)
        self.work, self.done = queue.Queue(), queue.Queue()
        self.start()
        self.ask(first)

    def run(self):
        while True:
            work = self.work.get()
            try:
                self.done.put(work())
            except OSError as error:
                self.done.put(-error.errno)

    def ask(self, work):
        self.work.put(work)
        return self.done.get(timeout=20)


def server():
    """A child that evaluates what it is asked, an expression of this module's names; its pid and the asking. An error of
    a system call is its negative number. It may have servers of its own, kept in KIDS."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def serve():
        here.close()
        KIDS.clear()
        while True:
            text = there.recv(1 << 16)
            if not text:
                os._exit(0)
            try:
                value = eval(text, globals())
            except OSError as error:
                value = -error.errno
            there.send(repr(value).encode())

    pid = fork(serve)
    there.close()

    def ask(text):
        here.send(text.encode())
        return ast.literal_eval(here.recv(1 << 16).decode())

    return pid, ask


KIDS = {}


def kid(ask, name):
    """Makes a server the child of another one; its pid there, and the asking through it."""
    pid = ask(f"KIDS.update({name}=server()) or KIDS['{name}'][0]")
    return pid, lambda text: ask(f"KIDS['{name}'][1]({text!r})")


def own_mounts():
    """A mount namespace of this process's own. Nothing that is mounted in it shows anywhere else."""
    syscall(272, 0x20000)
    mount("none", "/", "", 0x44000)
    for line in read("/proc/thread-self/mountinfo").splitlines():
        assert " shared:" not in line and " master:" not in line, line


def mount(source, target, kind="", flags=0, data=""):
    """mount(2)."""
    syscall(165, *(text.encode() for text in (source, target, kind)), flags, data.encode())


def mounts(pid="self"):
    """What is mounted as a process sees it: point, flags, type, options of the file system; in the order of the points."""
    found = []
    for line in read(f"/proc/{pid}/mountinfo").splitlines():
        words, system = (part.split() for part in line.split(" - ", 1))
        found.append((words[4], words[5], system[0], system[-1]))
    return sorted(found)


def mount_of(fd, pid="self"):
    """The point of the mount that a descriptor is on, or None when the process has no such mount."""
    number = [line.split()[1] for line in read(f"/proc/self/fdinfo/{fd}").splitlines() if line.startswith("mnt_id:")][0]
    points = [line.split()[4] for line in read(f"/proc/{pid}/mountinfo").splitlines() if line.split()[0] == number]
    return points[0] if points else None


def forever():
    while True:
        signal.pause()


def until(what, condition, limit=10.0):
    """Waits for a condition."""
    end = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Lost(f"waited {limit} s for {what}")
        time.sleep(0.002)


def tcp_pair(address="127.0.0.1"):
    """The two ends of a connection: the one that connected, the one that was accepted."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        return client, listener.accept()[0]


def set_options(sock, options):
    """Sets options, each (level, name, value), of which none may be as it was before; answers what checks them."""
    before = {}
    for level, name, value in options:
        fresh = sock.getsockopt(level, name, 64)
        sock.setsockopt(level, name, value)
        before[level, name] = sock.getsockopt(level, name, 64)
        assert before[level, name] != fresh, f"option {level}/{name} was {fresh} already"

    def check():
        changed = [key for key, value in before.items() if sock.getsockopt(*key, 64) != value]
        same("options that changed", changed, [])

    return check


def mapping(address):
    """The fields of /proc/self/smaps of what is mapped at an address; "name" is the line's end, "mode" its protection."""
    found = None
    for line in read("/proc/self/smaps").splitlines():
        head = line.split(None, 5)
        if not head[0].endswith(":"):
            start, end = (int(word, 16) for word in head[0].split("-"))
            found = {"mode": head[1], "name": (head + [""])[5], "range": (start, end)} if start <= address < end else None
        elif found is not None:
            key, value = line.split(":", 1)
            found[key] = set(value.split()) if key == "VmFlags" else value.strip()
            if key == "VmFlags":
                return found
    raise KeyError(hex(address))


def address_of(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def byte_at(address):
    """A byte of memory as the kernel reads it; None where it would fault."""
    end, begin = os.pipe()
    try:
        syscall(1, begin, address, 1)
        return os.read(end, 1)[0]
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return None
    finally:
        os.close(end)
        os.close(begin)


HUGE = 2 << 20


def huge_pages(name):
    """A number of the host's pool of huge pages of 2 MiB: Free, Rsvd."""
    rows = dict(line.split(":", 1) for line in read("/proc/meminfo").splitlines())
    return int(rows[f"HugePages_{name}"])


def say(text):
    os.write(1, (text + "\n").encode())


def run(path, directory):
    global SCRATCH
    with open(path) as file:
        source = file.read()
    SCRATCH = os.path.abspath(directory)
    os.makedirs(SCRATCH, exist_ok=True)
    os.chdir(SCRATCH)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    # Programs import this module by its name.
    sys.modules["case"] = sys.modules["__main__"]
    sys.dont_write_bytecode = True
    exec(compile(source, path, "exec"), {"__name__": "program"})
    program = _program()
    change = next(program)
    hot = mmap.mmap(-1, 16 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    say(f"ready {os.getpid()}")
    count = 0
    # Not sigtimedwait() with a limit: interrupted near its end by another signal, python's returns what it never got.
    while signal.SIGUSR2 not in signal.sigpending():
        time.sleep(0.003)
        count += 1
        hot[count % 16 * mmap.PAGESIZE] = count & 255
        if change:
            change()
    for _ in program:
        raise Lost("it yields once")


def main():
    arguments = sys.argv[1:]
    os.closerange(3, 1024)
    if arguments[0] == "--init":
        arguments = arguments[1:]
        if os.fork():
            # It outlives the program: whoever asked for the verdict may still be in its container.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            while True:
                try:
                    os.waitpid(-1, 0)
                except ChildProcessError:
                    signal.pause()
    if os.getsid(0) != os.getpid():
        os.setsid()
    try:
        run(arguments[0], arguments[1])
        say("ok")
        code = 0
    except Lost as lost:
        say(f"LOST {lost}")
        code = 1
    except BaseException:
        say("LOST " + " | ".join(traceback.format_exc().splitlines()[-3:]))
        code = 1
    os._exit(code)


if __name__ == "__main__":
    main()
