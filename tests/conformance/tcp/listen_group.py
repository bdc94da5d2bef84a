"""Three listeners of one address (SO_REUSEPORT), with backlogs of their own"""
import select
import socket

from case import case, same


@case
def listen_group():
    group = []
    port = 0
    for backlog in (3, 50, 7):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", port))
        port = listener.getsockname()[1]
        listener.listen(backlog)
        group.append(listener)
    yield
    # tcpi_sacked of a listener is its backlog.
    backlogs = [int.from_bytes(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)[28:32], "little") for end in group]
    same("backlogs", backlogs, [3, 50, 7])
    reached = set()
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", port)):
            ready = select.select(group, [], [], 5)[0]
            same("one gets it", len(ready), 1)
            ready[0].accept()[0].close()
            reached.add(group.index(ready[0]))
    same("listeners that are reached", reached, {0, 1, 2})
