"""Every packet of a move, seen from the client and from the LAN between the hosts.

serve PORT          answers each line of a TCP connection and each datagram
client IP PORT      asks one question at a time, sends numbered datagrams, and captures what passes its interface
watch PORT          captures what enters the LAN

A line on standard input asks a client for a verdict; at the end of standard input either tells what it saw.
"""

import json
import select
import socket
import struct
import sys
import threading
import time


def serve(port):
    tcp = socket.create_server(("", port), backlog=64)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("", port))
    last, backwards = {}, 0
    streams = {tcp.fileno(): tcp, udp.fileno(): udp}
    poll = select.epoll()
    for number in streams:
        poll.register(number, select.EPOLLIN)
    while True:
        for number, _ in poll.poll():
            stream = streams[number]
            if stream is tcp:
                new, _ = tcp.accept()
                new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                streams[new.fileno()] = new
                poll.register(new.fileno(), select.EPOLLIN)
            elif stream is udp:
                data, sender = udp.recvfrom(100)
                (index,) = struct.unpack("!Q", data)
                backwards += index <= last.get(sender, -1)
                last[sender] = max(index, last.get(sender, -1))
                udp.sendto(struct.pack("!QQ", index, backwards), sender)
            else:
                data = stream.recv(4096)
                if data:
                    stream.sendall(data)
                else:
                    poll.unregister(number)
                    streams.pop(number).close()


class Capture(threading.Thread):
    """Notes the packets of one port; those that leave by an interface only where `both` is set."""

    def __init__(self, port, both):
        super().__init__(daemon=True)
        self.port, self.both, self.seen, self.done = port, both, [], False
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self.socket.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS
        self.socket.settimeout(0.1)

    def run(self):
        while True:
            try:
                frame, extra, _, address = self.socket.recvmsg(200, 100)
            except TimeoutError:
                if self.done:
                    return
                continue
            interface, kind = address[0], address[2]
            if (kind == socket.PACKET_OUTGOING and not self.both) or interface in ("lo", "lan0"):
                continue
            if frame[12:14] != b"\x08\x00":
                continue
            when = next(struct.unpack("qq", data) for _, what, data in extra if what == 35)
            self.note(when[0] + when[1] / 1e9, frame[14:])

    def note(self, when, ip):
        head, length = (ip[0] & 15) * 4, struct.unpack("!H", ip[2:4])[0]
        ports = struct.unpack("!HH", ip[head : head + 4])
        if self.port not in ports:
            return
        towards = ports[1] == self.port
        peer = (ip[12:16] if towards else ip[16:20], ports[0] if towards else ports[1])
        if ip[9] == 6:
            seq, flags = struct.unpack("!I", ip[head + 4 : head + 8])[0], ip[head + 13]
            data = length - head - (ip[head + 12] >> 4) * 4 + bool(flags & 2) + bool(flags & 1)
            self.seen.append((when, "tcp", towards, peer, seq, data, bool(flags & 4)))
        elif ip[9] == 17:
            self.seen.append((when, "udp", towards, peer, 0, length - head - 8, False))

    def finish(self):
        """What is there to be said of it all."""
        self.done = True
        self.join()
        dropped = struct.unpack("II", self.socket.getsockopt(263, 6, 8))[1]  # PACKET_STATISTICS
        highest, first, again, resets = {}, {}, [], 0
        for when, kind, towards, peer, seq, data, reset in self.seen:
            resets += reset
            if kind != "tcp" or data == 0:
                continue
            way, end = (towards, peer), (seq + data) & 0xFFFFFFFF
            ahead = (end - highest.get(way, seq)) & 0xFFFFFFFF
            if 0 < ahead < 1 << 31:
                highest[way] = end
                first[way, end] = when
            else:
                waited = when - first.get((way, end), when)
                again.append({"by_client": towards, "after_ms": round(waited * 1e3, 1)})
        count = lambda kind: sum(1 for packet in self.seen if packet[1] == kind)
        return {
            "tcp": count("tcp"), "udp": count("udp"), "resets": resets, "again": again, "not_captured": dropped,
        }


def client(host, port):
    capture = Capture(port, True)
    capture.start()
    tcp = socket.create_connection((host, port), 10)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect((host, port))
    state = {"replies": 0, "gap": 0.0, "sent": 0, "got": [], "errors": [], "stop": False, "backwards": 0}

    def ask():
        try:
            tcp.settimeout(30)
            while not state["stop"]:
                question = b"%d\n" % state["replies"]
                began = time.monotonic()
                tcp.sendall(question)
                answer = b""
                while not answer.endswith(b"\n"):
                    piece = tcp.recv(100)
                    if not piece:
                        raise EOFError("the connection ended")
                    answer += piece
                if answer != question:
                    raise ValueError(f"{answer} instead of {question}")
                state["gap"] = max(state["gap"], time.monotonic() - began)
                state["replies"] += 1
        except Exception as error:
            state["errors"].append(f"tcp: {error!r}")

    def number():
        while not state["stop"]:
            udp.send(struct.pack("!Q", state["sent"]))
            state["sent"] += 1
            time.sleep(0.002)

    def receive():
        udp.settimeout(0.1)
        quiet = None
        while quiet is None or time.monotonic() - quiet < 2:
            try:
                index, state["backwards"] = struct.unpack("!QQ", udp.recv(100))
                state["got"].append(index)
            except TimeoutError:
                pass
            if state["stop"] and (quiet is None or len(state["got"]) < state["sent"]):
                quiet = quiet or time.monotonic()
            elif state["stop"]:
                return

    threads = [threading.Thread(target=work) for work in (ask, number, receive)]
    for thread in threads:
        thread.start()

    def verdict():
        return {
            "replies": state["replies"], "longest_gap_ms": state["gap"] * 1e3, "errors": state["errors"],
        }

    for _ in sys.stdin:
        before, end = state["replies"], time.monotonic() + 40
        while state["replies"] < before + 3 and not state["errors"] and time.monotonic() < end:
            time.sleep(0.002)
        if state["replies"] < before + 3:
            state["errors"].append("no answer")
        print(json.dumps(verdict()), flush=True)
        state["gap"] = 0.0
    state["stop"] = True
    for thread in threads:
        thread.join()
    got = state["got"]
    told = dict(verdict(), **capture.finish())
    told["datagrams"] = {
        "sent": state["sent"],
        "lost": state["sent"] - len(set(got)),
        "twice": len(got) - len(set(got)),
        "backwards_here": sum(1 for a, b in zip(got, got[1:]) if b < a),
        "backwards_there": state["backwards"],
    }
    print(json.dumps(told), flush=True)


def watch(port):
    capture = Capture(port, False)
    capture.start()
    print(json.dumps({"replies": 0, "longest_gap_ms": 0, "errors": []}), flush=True)
    sys.stdin.read()
    print(json.dumps(capture.finish()), flush=True)


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
elif sys.argv[1] == "client":
    client(sys.argv[2], int(sys.argv[3]))
else:
    watch(int(sys.argv[2]))
