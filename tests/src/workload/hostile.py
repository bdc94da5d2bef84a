"""Sends what no peer sends. Arguments: HOST PORT KIND, and for TLS the directory of a certificate.

Prints how the other side ended the connection; exits with 1 when it did not within ten seconds.
"""
import os, socket, ssl, struct, sys

host, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
tls = sys.argv[4] if len(sys.argv) > 4 else None


def crc32c(data):
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def frame(kind, length, body=b"", version=1, magic=b"GNTR", sequence=0):
    head = magic + struct.pack("<HBBQII", version, kind, 0, sequence, length, crc32c(body))
    return head + struct.pack("<I", crc32c(head)) + body


PAYLOADS = {
    "nothing": b"",
    "garbage": bytes(range(256)) * 1024,
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff\xff" * 4096,
    "oversized": frame(4, 0xFFFFFFFF),
    "oversized-state": frame(3, 0x7FFFFFFF) + b"x" * (1 << 20),
    "pages-first": frame(1, 4096, b"\0" * 4096),
    "kind-zero": frame(0, 0),
    "kind-unknown": frame(200, 0),
    "wrong-version": frame(4, 0, version=999),
    "wrong-magic": frame(4, 0, magic=b"XXXX"),
    "wrong-checksum": frame(4, 32, b"\1" * 32)[:-1] + b"\0",
    "rubbish": frame(4, 32, os.urandom(32)),
    "half": frame(4, 1000, b"\0" * 1000)[:500],
}

raw = socket.create_connection((host, port), 5)
raw.settimeout(10)
how = None
try:
    connection = raw
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if tls != "none":
            context.load_cert_chain(f"{tls}/tls.crt", f"{tls}/tls.key")
        if port != 7445:
            context.set_alpn_protocols(["h2"])
        connection = context.wrap_socket(raw)
    connection.sendall(PAYLOADS[kind])
    if kind in ("nothing", "half"):
        raw.shutdown(socket.SHUT_WR)
    while connection.recv(65536):
        pass
    how = "closed"
except TimeoutError:
    print("still open after ten seconds")
    sys.exit(1)
except OSError as error:
    how = str(error)
print(how)
