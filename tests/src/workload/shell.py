"""bash with job control on a terminal, and whoever sits at it. Answers `check` on TCP port 7000 with `ok N TURNS`."""
import os, pty, re, select, socketserver, threading, time

shell, master = pty.fork()
if shell == 0:
    os.environ.update(PS1="", PS2="", TERM="dumb", HISTFILE="")
    os.execv("/bin/bash", ["bash", "--norc", "--noediting", "-i"])

fault = None
turns = 0


def until(pattern):
    """Reads what the terminal shows until it matches."""
    said, end = "", time.monotonic() + 30
    while not re.search(pattern, said, re.S):
        left = end - time.monotonic()
        if left <= 0:
            raise RuntimeError(f"{pattern!r} was not shown, only {said!r}")
        if select.select([master], [], [], left)[0]:
            said += os.read(master, 4096).decode()
    return said


def typed(text):
    os.write(master, text.encode())


def run(command, pattern=""):
    """Runs a command that must show this, and succeed."""
    global turns
    typed(f"{command}; echo end {turns}-$?\n")
    said = until(rf"end {turns}-\d+\r\n")
    if not re.search(pattern + rf".*end {turns}-0\r\n", said, re.S):
        raise RuntimeError(f"{command}: {said!r}")
    turns += 1


def in_front(other):
    """Waits until the shell, or another job than the shell, has the terminal."""
    end = time.monotonic() + 30
    while (os.tcgetpgrp(master) != shell) != other:
        if time.monotonic() > end:
            raise RuntimeError("the terminal did not change hands")
        time.sleep(0.005)


def stop_job():
    in_front(True)
    typed("\x1a")
    until(r"\[2\]\+\s+Stopped\s+sleep 100000")


def sit():
    global fault
    try:
        # A job that forks all the time, and one that is stopped.
        run("while :; do sleep 0.05; done & true")
        typed("sleep 100000\n")
        stop_job()
        while True:
            run("jobs", r"\[1\]-\s+Running.*\[2\]\+\s+Stopped\s+sleep 100000")
            # To the foreground and back.
            typed("fg %2\n")
            stop_job()
            typed("cat\n")
            in_front(True)
            typed(f"line {turns}\n")
            until(rf"line {turns}\r\n.*line {turns}\r\n")
            # An interrupt ends it.
            typed("\x03")
            in_front(False)
            run("echo $((6 * 7))", "42")
            run("sleep 0.02 | (read x; true)")
            # They think.
            time.sleep(0.2)
    except Exception as error:
        fault = f"{error}".replace("\n", " ")


class Answer(socketserver.StreamRequestHandler):
    def handle(self):
        for count, _ in enumerate(self.rfile, 1):
            self.wfile.write(f"{fault or f'ok {count} {turns}'}\n".encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


threading.Thread(target=sit, daemon=True).start()
Server(("0.0.0.0", 7000), Answer).serve_forever()
