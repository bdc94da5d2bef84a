"""A child in an IPC namespace of its own with a segment of shared memory in it"""
# refused: IPC namespace
# with: CAP_SYS_ADMIN
import os

from case import case, forever, fork, same, syscall


@case
def namespace_ipc_used():
    reader, writer = os.pipe()

    def child():
        syscall(272, 0x8000000)
        syscall(29, 4711, 8192, 0o1600)
        os.write(writer, b"x")
        forever()

    pid = fork(child)
    os.read(reader, 1)
    name = os.readlink(f"/proc/{pid}/ns/ipc")
    assert name != os.readlink("/proc/self/ns/ipc"), "it is the same"
    yield
    same("namespace", os.readlink(f"/proc/{pid}/ns/ipc"), name)
