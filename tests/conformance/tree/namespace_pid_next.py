"""A process whose children would be in another pid namespace, which has none yet"""
# with: CAP_SYS_ADMIN
import os

from case import case, forever, fork, same, syscall


@case
def namespace_pid_next():
    reader, writer = os.pipe()

    def child():
        syscall(272, 0x20000000)
        os.write(writer, b"x")
        os.read(go, 1)
        os.write(writer, b"%d" % os.getpid() if fork(lambda: os._exit(os.getpid())) else b"")
        os.write(writer, b"%d" % (os.wait()[1] >> 8))
        forever()

    go, ask = os.pipe()
    pid = fork(child)
    os.read(reader, 1)
    yield
    os.write(ask, b"x")
    os.read(reader, len(str(pid)))
    same("the child's number", os.read(reader, 9), b"1")
