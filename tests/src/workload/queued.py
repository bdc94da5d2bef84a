"""An HTTP server that serves one connection after the other, slowly: the next ones wait in line to be accepted."""
import socketserver
import struct
import time

CONTENT = b"".join(struct.pack("<I", n * 2654435761 & 0xFFFFFFFF) for n in range(16384))


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while self.rfile.readline().strip():
            pass
        time.sleep(0.03)
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(CONTENT) + CONTENT)


class Server(socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = 64


Server(("0.0.0.0", 8080), Handler).serve_forever()
