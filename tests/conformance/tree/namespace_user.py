"""A child in a user namespace of its own"""
# refused: user namespace
import os

from case import case, forever, fork, same, syscall


@case
def namespace_user():
    reader, writer = os.pipe()

    def child():
        syscall(272, 0x10000000)
        os.write(writer, b"%d" % os.getpid())
        forever()

    fork(child)
    pid = int(os.read(reader, 9))
    name = os.readlink(f"/proc/{pid}/ns/user")
    assert name != os.readlink("/proc/self/ns/user"), "it is the same"
    yield
    same("namespace", os.readlink(f"/proc/{pid}/ns/user"), name)
