"""Descriptors in messages: files, pipes, sockets in sockets, and the socket itself"""
import os
import socket

from case import case, same, scratch


@case
def in_flight():
    left, right = socket.socketpair()
    inner, other = socket.socketpair()
    file = os.open(scratch("data"), os.O_CREAT | os.O_RDWR)
    os.write(file, b"content")
    os.lseek(file, 3, os.SEEK_SET)
    reader, writer = os.pipe()
    # What is open in a message alone is not seen before.
    spare = os.dup(reader), os.dup(writer)
    socket.send_fds(inner, [b"inner"], [reader])
    socket.send_fds(left, [b"one"], [file, other.fileno()])
    left.send(b"two")
    socket.send_fds(left, [b"three"], [writer])
    os.close(file), os.close(reader), os.close(writer)
    loop, self = socket.socketpair()
    socket.send_fds(loop, [b"self"], [self.fileno()])
    yield
    same("spare", [os.fstat(fd).st_mode & 0o170000 for fd in spare], [0o010000] * 2)
    data, fds, _, _ = socket.recv_fds(right, 99, 9)
    same("first", (data, len(fds)), (b"one", 2))
    same("offset", os.read(fds[0], 9), b"tent")
    same("second", right.recv(3), b"two")
    data, more, _, _ = socket.recv_fds(right, 99, 9)
    same("third", (data, len(more)), (b"three", 1))
    data, inside, _, _ = socket.recv_fds(socket.socket(fileno=fds[1]), 9, 9)
    same("inner", (data, len(inside)), (b"inner", 1))
    os.write(more[0], b"through")
    same("the pipe", os.read(inside[0], 9), b"through")
    same("itself", len(socket.recv_fds(self, 9, 9)[1]), 1)
