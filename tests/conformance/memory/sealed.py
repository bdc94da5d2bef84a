"""Mappings that are sealed (mseal): written, for reading only, of a file, and half of one"""
import ctypes
import mmap
import os

from case import address_of, case, libc, mapping, same, scratch, syscall

PAGE = mmap.PAGESIZE


@case
def sealed():
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, 4 * PAGE, flags=private)
    half = mmap.mmap(-1, 4 * PAGE, flags=private)
    fd = os.open(scratch("file"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"f" * 2 * PAGE)
    file = mmap.mmap(fd, 2 * PAGE, flags=mmap.MAP_SHARED)
    quiet = mmap.mmap(-1, 4 * PAGE, flags=private)
    quiet.write(b"q" * 4 * PAGE)
    places = [address_of(memory), address_of(half) + 2 * PAGE, address_of(file), address_of(quiet)]
    syscall(10, places[3], 4 * PAGE, 1)
    lengths = [4 * PAGE, 2 * PAGE, 2 * PAGE, 4 * PAGE]
    for place, length in zip(places, lengths):
        syscall(462, place, length, 0)
    counted = 0

    def change():
        nonlocal counted
        counted += 1
        memory[:8] = counted.to_bytes(8, "little")

    yield change
    same("memory", int.from_bytes(memory[:8], "little"), counted)
    same("content", [file[7], ctypes.string_at(places[3], 4)], [ord("f"), b"qqqq"])
    same("seals", ["sl" in mapping(place)["VmFlags"] for place in places], [True] * 4)
    same("half", "sl" in mapping(address_of(half))["VmFlags"], False)
    for place, length in zip(places, lengths):
        same("unmapped", libc.munmap(ctypes.c_void_p(place), length), -1)
        same("protected", libc.mprotect(ctypes.c_void_p(place), length, 0), -1)
    same("the other half", libc.munmap(ctypes.c_void_p(address_of(half)), 2 * PAGE), 0)
