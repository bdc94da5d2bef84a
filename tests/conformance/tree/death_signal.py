"""A child that is killed when its parent dies (PR_SET_PDEATHSIG), the parent too is a child"""
import os
import signal

from case import case, forever, fork, prctl, same


@case
def death_signal():
    reader, writer = os.pipe()
    prctl(36, 1)

    def parent():
        def child():
            prctl(1, signal.SIGUSR1)
            os.write(writer, b"%d" % os.getpid())
            forever()

        fork(child)
        forever()

    middle = fork(parent)
    child = int(os.read(reader, 9))
    yield
    os.kill(middle, signal.SIGKILL)
    os.waitpid(middle, 0)
    same("end of the child", os.waitpid(child, 0)[1], int(signal.SIGUSR1))
