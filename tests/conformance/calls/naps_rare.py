"""Rarer calls that wait for a time go on for the rest of it: select, pselect, ppoll, futex_waitv, FUTEX_WAIT_BITSET, sigtimedwait"""
import ctypes
import os
import struct
import threading
import time

from case import case, same, syscall

TOTAL = 2
SELECT, PSELECT, PPOLL, FUTEX, WAITV, SIGTIMEDWAIT = 23, 270, 271, 202, 449, 128


def block(*words):
    return ctypes.create_string_buffer(struct.pack(f"={len(words)}q", *words), 8 * len(words))


def at(buffer):
    return ctypes.addressof(buffer)


@case
def naps_rare():
    reader, _ = os.pipe()
    word = ctypes.create_string_buffer(struct.pack("=I", 7), 4)
    deadline = time.clock_gettime(time.CLOCK_MONOTONIC) + TOTAL
    absolute = block(int(deadline), int(deadline % 1 * 1e9))
    # struct futex_waitv: value, address, FUTEX2_SIZE_U32 | FUTEX2_PRIVATE
    waiter = ctypes.create_string_buffer(struct.pack("=QQII", 7, at(word), 2 | 128, 0), 24)
    polled = ctypes.create_string_buffer(struct.pack("=ihh", reader, 1, 0), 8)
    sets, mask = block(1 << reader, *[0] * 15), block(1 << 40)
    relative = lambda: block(TOTAL, 0)
    calls = {
        "select": (lambda t: (SELECT, reader + 1, at(sets), 0, 0, at(t)), 0),
        "pselect": (lambda t: (PSELECT, 0, 0, 0, 0, at(t), 0), 0),
        "ppoll": (lambda t: (PPOLL, at(polled), 1, at(t), 0, 8), 0),
        "sigtimedwait": (lambda t: (SIGTIMEDWAIT, at(mask), 0, at(t), 8), 11),
        "futex_waitv": (lambda _: (WAITV, at(waiter), 1, 0, at(absolute), 1), 110),
        # FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, until a time
        "futex_bitset": (lambda _: (FUTEX, at(word), 9 | 128, 7, at(absolute), 0, 0xFFFFFFFF), 110),
    }
    ended = {}

    def run(name, make):
        limit = relative()
        numbers = make(limit)

        def work(_kept=limit):
            began = time.monotonic()
            try:
                result = syscall(*numbers)
            except OSError as error:
                result = error.errno
            ended[name] = (result, time.monotonic() - began)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    threads = [run(name, make) for name, (make, _) in calls.items()]
    yield
    for thread in threads:
        thread.join(30)
    same("results", {name: result for name, (result, _) in ended.items()}, {name: end for name, (_, end) in calls.items()})
    times = [took for _, took in ended.values()]
    same("too early", [took for took in times if took < TOTAL - 0.05], [])
    assert max(times) - min(times) < 0.4, f"one has slept longer than others: {ended}"
