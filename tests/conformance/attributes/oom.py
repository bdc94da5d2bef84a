"""oom_score_adj of a process"""
import os

from case import case, read, same


@case
def oom():
    value = [300]

    def change():
        if value[0] < 990:
            value[0] += 1
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write(str(value[0]))

    change()
    yield change
    same("oom_score_adj", int(read(f"/proc/{os.getpid()}/oom_score_adj")), value[0])
