"""A child in a cgroup namespace of its own"""
# refused: cgroup namespace
# not: move: it takes a capability that the container does not have
import os

from case import case, forever, fork, same, syscall


@case
def namespace_cgroup():
    reader, writer = os.pipe()

    def child():
        syscall(272, 0x2000000)
        os.write(writer, b"%d" % os.getpid())
        forever()

    fork(child)
    pid = int(os.read(reader, 9))
    name = os.readlink(f"/proc/{pid}/ns/cgroup")
    assert name != os.readlink("/proc/self/ns/cgroup"), "it is the same"
    yield
    same("namespace", os.readlink(f"/proc/{pid}/ns/cgroup"), name)
