"""Open files of /proc: of itself, of a child, half read, mem"""
import os

from case import case, fork, forever, same, scratch


@case
def proc():
    child = fork(forever)
    own = os.open("/proc/self/status", os.O_RDONLY)
    other = os.open(f"/proc/{child}/status", os.O_RDONLY)
    half = os.open("/proc/self/maps", os.O_RDONLY)
    os.read(half, 100)
    memory = os.open("/proc/self/mem", os.O_RDWR)
    directory = os.open(f"/proc/{child}", os.O_RDONLY | os.O_DIRECTORY)
    text = bytearray(b"in memory")
    import ctypes
    address = ctypes.addressof((ctypes.c_char * len(text)).from_buffer(text))
    yield
    assert b"Pid:\t%d\n" % os.getpid() in os.read(own, 4000)
    assert b"Pid:\t%d\n" % child in os.read(other, 4000)
    same("position", os.lseek(half, 0, os.SEEK_CUR), 100)
    same("mem", os.pread(memory, len(text), address), b"in memory")
    os.pwrite(memory, b"IN", address)
    same("written", bytes(text), b"IN memory")
    assert "status" in os.listdir(directory)
