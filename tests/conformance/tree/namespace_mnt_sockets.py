"""Unix sockets across mount namespaces: bound on a mount of a nested one, and connected to from there to one outside"""
# refused-here: host boxed: mnt namespace
# with: CAP_SYS_ADMIN
import os
import socket

from case import case, same, scratch, server


@case
def namespace_mnt_sockets():
    os.mkdir(scratch("run"))
    outside = socket.socket(socket.AF_UNIX)
    outside.bind(scratch("run/outside"))
    outside.listen()
    pid, ask = server()
    ask("own_mounts() or os.mkdir(scratch('own')) or mount('own', scratch('own'), 'tmpfs')")
    ask("globals().update(listener=socket.socket(socket.AF_UNIX), there=socket.socket(socket.AF_UNIX), box=socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))")
    ask("listener.bind(scratch('own/inside')) or listener.listen() or box.bind(scratch('own/box'))")
    ask("there.connect(scratch('run/outside'))")
    here = outside.accept()[0]
    # A client and its server, both inside.
    ask("globals().update(client=socket.socket(socket.AF_UNIX))")
    ask("client.connect(scratch('own/inside'))")
    ask("globals().update(served=listener.accept()[0])")
    # Unread.
    ask("there.send(b'to outside') and client.send(b'inside') and None")
    ask("socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'letter', scratch('own/box')) and None")
    yield
    same("from inside", here.recv(20), b"to outside")
    same("its end", (ask("there.getpeername()"), here.getsockname()), (scratch("run/outside"), scratch("run/outside")))
    same("the name outside", outside.getsockname(), scratch("run/outside"))
    same("inside", ask("(served.recv(20), client.getpeername(), listener.getsockname())"), (b"inside", scratch("own/inside"), scratch("own/inside")))
    same("a datagram", ask("(box.recv(20), box.getsockname())"), (b"letter", scratch("own/box")))
    same("back", ask("served.send(b'x') and client.recv(1)"), b"x")
    ask("globals().update(again=socket.socket(socket.AF_UNIX))")
    same("a new client inside", ask("again.connect(scratch('own/inside')) or listener.accept()[0].getsockname()"), scratch("own/inside"))
    late = socket.socket(socket.AF_UNIX)
    late.connect(scratch("run/outside"))
    same("a new client outside", outside.accept()[0].getsockname(), scratch("run/outside"))
    same("no name outside", os.path.exists(scratch("own/inside")), False)
