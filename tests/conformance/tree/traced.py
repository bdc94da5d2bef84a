"""A child that another one traces"""
# refused: traced
import os

from case import case, forever, fork, same, status, syscall


@case
def traced():
    traced = fork(forever)

    def tracer():
        # PTRACE_SEIZE
        syscall(101, 0x4206, traced, 0, 0)
        os.write(writer, b"x")
        forever()

    reader, writer = os.pipe()
    # PR_SET_PTRACER is not needed: root may.
    pid = fork(tracer)
    os.read(reader, 1)
    yield
    same("tracer", status("TracerPid", traced), str(pid))
