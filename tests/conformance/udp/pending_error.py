"""A connected socket to which nobody answered, which the program has not seen yet"""
# refused: an error that waits to be told
import select
import socket

from case import case, until


@case
def pending_error():
    gone, sock = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    gone.bind(("127.0.0.1", 0))
    gone.connect(("127.0.0.1", 9))
    sock.connect(gone.getsockname())
    sock.send(b"lost")
    poll = select.poll()
    poll.register(sock, select.POLLERR)
    until("the answer", lambda: poll.poll(0))
    yield
    sock.settimeout(0.2)
    try:
        sock.recv(9)
    except ConnectionRefusedError:
        return
    except TimeoutError:
        pass
    raise AssertionError("no error")
