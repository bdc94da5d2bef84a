"""Memory that another process writes to (process_vm_writev, /proc/PID/mem) while it is copied"""
import ctypes
import mmap
import os

from case import address_of, case, same, server, syscall

PAGES = 256


@case
def written_by_others():
    memory = mmap.mmap(-1, PAGES * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    place = address_of(memory)
    expected = bytearray(PAGES * 4096)
    parent = os.getpid()
    pid, ask = server()
    ask("globals().update(ctypes=__import__('ctypes'), struct=__import__('struct')) or 0")
    turn = [0]

    def change():
        turn[0] += 1
        page = turn[0] * 7 % PAGES
        text = b"turn %d " % turn[0] * 50
        at = place + page * 4096
        if turn[0] % 2:
            ask(
                f"globals().update(text=ctypes.create_string_buffer({text!r}, {len(text)})) or "
                f"syscall(311, {parent}, struct.pack('QQ', ctypes.addressof(text), {len(text)}), 1, "
                f"struct.pack('QQ', {at}, {len(text)}), 1, 0)"
            )
        else:
            ask(f"globals().update(f=os.open('/proc/{parent}/mem', os.O_WRONLY)) or os.pwrite(f, {text!r}, {at}) or 0")
            ask("os.close(f) or 0")
        expected[page * 4096 : page * 4096 + len(text)] = text

    change()
    change()
    yield change
    same("memory", memory[:] == bytes(expected), True)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
