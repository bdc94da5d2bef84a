"""A mapping of a TCP socket, into which what is received is put (TCP_ZEROCOPY_RECEIVE)"""
# refused: socket
import mmap

from case import case, same, tcp_pair


@case
def mapped():
    client, server = tcp_pair()
    memory = mmap.mmap(server.fileno(), 64 << 10, mmap.MAP_SHARED, mmap.PROT_READ)
    yield
    client.sendall(b"x")
    same("data", server.recv(5), b"x")
    del memory
