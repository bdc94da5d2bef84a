"""SO_PEERCRED: who has made the pair, connected, listened"""
import os
import socket
import struct

from case import case, fork, forever, same, scratch, until


def peer(sock):
    return struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))


@case
def peer_credentials():
    me = (os.getpid(), 0, 0)
    pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM)]
    # Made by another user.
    os.setresgid(-1, 12, -1)
    os.setresuid(-1, 11, -1)
    as_other = socket.socketpair()
    os.setresuid(-1, 0, -1)
    os.setresgid(-1, 0, -1)
    listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    listeners[0].bind(scratch("listener"))
    listeners[1].bind(b"\0peer-credentials-%d" % os.getpid())
    for listener in listeners:
        listener.listen(5)

    def child():
        os.setresgid(22, 22, -1)
        os.setresuid(21, 21, -1)
        clients = [socket.socket(socket.AF_UNIX) for _ in listeners]
        for client, listener in zip(clients, listeners):
            client.connect(listener.getsockname())
        # What it sees, when it is asked for.
        while clients[0].recv(1):
            clients[0].send(b"".join(struct.pack("=iII", *peer(client)) for client in clients))
        forever()

    os.chmod(scratch("listener"), 0o777)
    pid = fork(child)
    servers = [listener.accept()[0] for listener in listeners]
    # Who has ended is not known any more: another pair, whose end is closed.
    lonely, gone = socket.socketpair()
    gone.close()
    yield
    for left, right in pairs:
        same("a pair", [peer(left), peer(right)], [me, me])
    same("a pair of another user", [peer(sock) for sock in as_other], [(me[0], 11, 12)] * 2)
    same("the connected", [peer(server) for server in servers], [(pid, 21, 22)] * 2)
    same("the listening", [peer(listener) for listener in listeners], [me, me])
    servers[0].send(b"x")
    same("from there", servers[0].recv(99), struct.pack("=iII", *me) * 2)
    same("one whose peer has closed", peer(lonely), me)
    same("its ids", os.getresuid() + os.getresgid(), (0,) * 6)
