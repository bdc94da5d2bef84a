"""A socket with a filter of eBPF"""
# refused: eBPF
# not: move: a container has no CAP_BPF
import ctypes
import os
import socket
import struct

from case import case, same, syscall


@case
def filter_ebpf():
    # r0 = 65535; exit
    code = ctypes.create_string_buffer(struct.pack("=BBhi", 0xb7, 0, 0, 65535) + struct.pack("=BBhi", 0x95, 0, 0, 0))
    license = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("=IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(license)) + bytes(48)
    program = syscall(321, 5, ctypes.c_char_p(attributes), len(attributes))
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, 50, program)
    os.close(program)
    yield
    same("type", sock.type & 15, int(socket.SOCK_DGRAM))
