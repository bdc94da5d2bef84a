"""A child in a time namespace of its own"""
# refused: time namespace
# not: move: it takes a capability that the container does not have
import os

from case import case, forever, fork, same, syscall


@case
def namespace_time():
    reader, writer = os.pipe()

    def child():
        syscall(272, 0x80)
        # It is for the children.
        grandchild = fork(forever)
        os.write(writer, b"%d" % grandchild)
        forever()

    fork(child)
    pid = int(os.read(reader, 9))
    name = os.readlink(f"/proc/{pid}/ns/time")
    assert name != os.readlink("/proc/self/ns/time"), "it is the same"
    yield
    same("namespace", os.readlink(f"/proc/{pid}/ns/time"), name)
