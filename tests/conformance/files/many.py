"""Descriptors with numbers above 1000, far apart, and 600 of them"""
import os
import resource

from case import case, same, scratch


@case
def many():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    top = min(hard, 1 << 19) - 1
    fd = os.open(scratch("data"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * 5000)
    numbers = list(range(1000, 1600)) + [top]
    for number in numbers:
        one = os.open(scratch("data"), os.O_RDONLY)
        os.lseek(one, number % 4999, os.SEEK_SET)
        os.dup2(one, number)
        os.close(one)
    yield
    for number in numbers:
        same(f"offset of {number}", os.lseek(number, 0, os.SEEK_CUR), number % 4999)
    same("open", len(os.listdir("/proc/self/fd")), len(numbers) + 5)
