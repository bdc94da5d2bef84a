"""A child in a pid namespace of its own"""
# refused: pid namespace
# not: move: it takes a capability that the container does not have
import os

from case import case, forever, fork, same, syscall


@case
def namespace_pid():
    reader, writer = os.pipe()

    def child():
        syscall(272, 0x20000000)
        # It is for the children.
        grandchild = fork(forever)
        os.write(writer, b"%d" % grandchild)
        forever()

    fork(child)
    pid = int(os.read(reader, 9))
    name = os.readlink(f"/proc/{pid}/ns/pid")
    assert name != os.readlink("/proc/self/ns/pid"), "it is the same"
    yield
    same("namespace", os.readlink(f"/proc/{pid}/ns/pid"), name)
