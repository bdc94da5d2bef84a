"""The number of a process that has ended is not given to the next one"""
# not: null host: other processes of the machine take numbers
import os

from case import case, forever, fork


@case
def next_number():
    ended = fork(lambda: None)
    os.waitpid(ended, 0)
    living = fork(forever)
    assert living > ended
    yield
    after = fork(lambda: None)
    os.waitpid(after, 0)
    assert after > living, f"{after} after {living}, and {ended} had ended"
