# Checks its terminals before and after a move. argv: log file, file that says "go on".
import ctypes, fcntl, os, select, signal, struct, sys, termios, time

log_path, go_path = sys.argv[1:3]
log = open(log_path, "a", buffering=1)
TIOCGPTPEER, TIOCPKT, TIOCGPKT, TIOCEXCL, TIOCGEXCL = 0x5441, 0x5420, 0x80045438, 0x540C, 0x80045440


def check(what, good):
    log.write(("ok " if good else "BAD ") + what + "\n")


def read_until(fd, text, limit=10):
    got, end = b"", time.monotonic() + limit
    while text not in got and time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            got += os.read(fd, 4096)
    return got


def open_pty(raw=False):
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, 0x40045431, struct.pack("i", 0))
    index = struct.unpack("i", fcntl.ioctl(master, 0x80045430, b"\0" * 4))[0]
    slave = os.open("/dev/pts/%d" % index, os.O_RDWR | os.O_NOCTTY)
    if raw:
        import tty
        tty.setraw(slave)
    return master, slave, index


def pgrp_of(fd):
    return struct.unpack("i", fcntl.ioctl(fd, termios.TIOCGPGRP, b"\0" * 4))[0]


def job(slave):
    """The foreground job: answers lines, and tells of its terminal."""
    sizes = []
    signal.signal(signal.SIGWINCH, lambda *_: sizes.append(os.get_terminal_size(0)))
    signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\n"))
    own = os.open("/dev/tty", os.O_RDWR)
    while True:
        try:
            line = os.read(0, 1000)
        except InterruptedError:
            continue
        if line == b"size\n":
            os.write(own, b"size %r\n" % (sizes[-1:],))
        elif line == b"tty\n":
            again = os.open("/dev/tty", os.O_RDWR)
            os.write(again, b"tty %s %d %d\n" % (os.readlink("/proc/self/fd/%d" % own).encode(),
                                                 os.getpgrp(), os.getsid(0)))
            os.close(again)
        else:
            os.write(1, b"answer " + line)


def shell(slave, index):
    """The session's leader."""
    os.setsid()
    os.close(slave)
    tty = os.open("/dev/pts/%d" % index, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(tty, fd)
    os.close(tty)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    daemon = os.fork()
    if daemon == 0:
        # A member that gave its terminal up.
        os.setpgid(0, 0)
        fcntl.ioctl(0, termios.TIOCNOTTY)
        while True:
            time.sleep(1000)
    stopped = os.fork()
    if stopped == 0:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTIN, signal.SIG_DFL)
        os.read(0, 10)  # In the background: SIGTTIN stops it.
        os._exit(0)
    front = os.fork()
    if front == 0:
        os.setpgid(0, 0)
        # One that reads before it is in the foreground is stopped.
        while os.tcgetpgrp(0) != os.getpgrp():
            time.sleep(0.01)
        job(0)
    os.setpgid(front, front)
    os.tcsetpgrp(0, front)
    while True:
        time.sleep(1000)


master, slave, index = open_pty()
fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 7, 8))
if os.fork() == 0:
    os.close(master)
    shell(slave, index)
os.close(slave)
while pgrp_of(master) == 0:
    time.sleep(0.01)
os.write(master, b"early\n")
while b"answer early" not in read_until(master, b"answer early", 1):
    os.write(master, b"early\n")
read_until(master, b"never", 0.5)
raw_master, raw_slave, raw_index = open_pty(raw=True)
fcntl.ioctl(raw_master, TIOCPKT, struct.pack("i", 1))
fcntl.ioctl(raw_slave, TIOCEXCL)
gone_master, gone_slave, gone_index = open_pty()
gone_again = os.open("/dev/pts/%d" % gone_index, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
last_master, last_slave, last_index = open_pty()
os.close(gone_master)
left_master, left_slave, left_index = open_pty()
os.close(left_slave)
os.chmod("/dev/pts/%d" % index, 0o622)
os.chown("/dev/pts/%d" % index, 12, 34)


def state():
    node = os.stat("/dev/pts/%d" % index)
    return [index, raw_index, last_index, left_index, termios.tcgetattr(master), termios.tcgetattr(raw_slave),
            fcntl.ioctl(master, termios.TIOCGWINSZ, b"\0" * 8), fcntl.ioctl(raw_master, TIOCGPKT, b"\0" * 4),
            fcntl.ioctl(raw_slave, TIOCGEXCL, b"\0" * 4), fcntl.ioctl(master, 0x80045439, b"\0" * 4),
            node.st_mode, node.st_uid, node.st_gid, pgrp_of(master),
            struct.unpack("i", fcntl.ioctl(master, 0x5429, b"\0" * 4))]  # TIOCGSID


def hangs_up(fd):
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return any(events & select.POLLHUP for _, events in poller.poll(0))


os.write(master, b"half a l")
check("echo", read_until(master, b"half a l") == b"half a l")
before = state()
check("left", hangs_up(left_master) and os.read(gone_slave, 10) == b"")
log.write("ready\n")
while not os.path.exists(go_path):
    time.sleep(0.01)
after = state()
check("state %r %r" % (before, after), before == after)
check("left", hangs_up(left_master) and not hangs_up(last_master))
check("hung up", os.read(gone_slave, 10) == b"" and os.read(gone_again, 10) == b"")
os.write(master, b"ine\n")
got = read_until(master, b"answer half a line\r\n")
check("line %r" % got, got == b"ine\r\nanswer half a line\r\n")
os.write(master, b"tty\n")
got = read_until(master, b"tty /dev/tty %d" % pgrp_of(master))
check("own terminal %r" % got, b"tty /dev/tty %d" % pgrp_of(master) in got)
read_until(master, b"never", 0.2)
os.write(master, b"\x03")
got = read_until(master, b"interrupted")
check("interrupt %r" % got, b"interrupted" in got)
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 88, 0, 0))
time.sleep(0.2)
os.write(master, b"size\n")
got = read_until(master, b"lines=44")
check("size %r" % got, b"columns=88, lines=44" in got)
os.write(raw_slave, b"raw\n")
check("packet", read_until(raw_master, b"raw") == b"\0raw\n")
os.write(last_master, b"typed\n")
check("last", os.read(last_slave, 100) == b"typed\n")
again = open_pty()
# The number of one that was hung up is taken as long as it is open.
check("a new terminal gets the next number", again[2] == left_index + 1)
log.write("done\n")
while True:
    time.sleep(1000)
