"""Sockets with names that neither listen nor are connected; one whose name was removed"""
import os
import socket
import stat

from case import case, same, scratch


@case
def bound_only():
    wanted = []
    for kind in (1, 2, 5):
        one = socket.socket(socket.AF_UNIX, kind)
        one.bind(scratch(f"bound{kind}"))
        gone = socket.socket(socket.AF_UNIX, kind)
        gone.bind(scratch(f"gone{kind}"))
        os.unlink(scratch(f"gone{kind}"))
        wanted.append((one, scratch(f"bound{kind}"), gone, scratch(f"gone{kind}")))
    yield
    for one, name, gone, gone_name in wanted:
        same("names", (one.getsockname(), gone.getsockname()), (name, gone_name))
        same("socket file", stat.S_ISSOCK(os.stat(name).st_mode), True)
        same("removed", os.path.exists(gone_name), False)
        if one.type != socket.SOCK_DGRAM:
            one.listen()
            client = socket.socket(socket.AF_UNIX, one.type)
            client.connect(name)
            one.accept()
