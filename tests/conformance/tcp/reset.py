"""A connection that its peer has reset, which the program has not seen yet"""
# refused: has ended
import select
import socket
import struct

from case import case, tcp_pair, until


@case
def reset():
    left, right = tcp_pair()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    left.close()
    until("the reset", lambda: select.select([right], [], [], 0)[0])
    yield
    try:
        data = right.recv(9)
    except ConnectionResetError:
        return
    raise AssertionError(f"it reads {data!r}")
