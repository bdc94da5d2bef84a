"""All registers: general, x87, SSE, AVX, flags, of a thread that runs code and no call"""
import ctypes
import mmap
import threading
import time

from case import case, same

# Sets registers from the table in rdi, spins until the word at rdi+0x400 is set, stores them at rdi+0x200.
CODE = bytes.fromhex(
    "5355415441554156415757"      # push rbx rbp r12-r15 rdi
    "9bdbe3"                      # finit
    "dd07" "dd4708"               # fld qword [rdi], [rdi+8]
    "0faef0"                      # mfence
    "f30f6f4710" "f30f6f7f20"     # movdqu xmm0, xmm7
    "f3440f6f7f30"                # movdqu xmm15
    "488b5f40" "488b6f48" "4c8b4750" "4c8b4f58" "4c8b5760" "4c8b5f68" "4c8b6770" "4c8b6f78"
    "4c8bb780000000" "4c8bbf88000000"
    "fd"                          # std
    "f390" "83bf0004000000" "74f5"  # pause; cmp dword [rdi+0x400], 0; je -11
    "9c" "8f8720020000" "fc"      # pushfq; pop [rdi+0x220]; cld
    "f30f7f8710020000"            # movdqu [rdi+0x210], xmm0
    "f30f7fbf30020000"            # movdqu [rdi+0x230], xmm7
    "f3440f7fbf40020000"          # movdqu [rdi+0x240], xmm15
    "48899f50020000" "4889af58020000" "4c898760020000" "4c898f68020000" "4c899770020000" "4c899f78020000"
    "4c89a780020000" "4c89af88020000" "4c89b790020000" "4c89bf98020000"
    "dd9f08020000" "dd9f00020000"  # fstp [rdi+0x208], [rdi+0x200]
    "5f415f415e415d415c5d5bc3"
)


@case
def registers():
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(CODE)
    table = ctypes.create_string_buffer(0x800)
    table[:16] = bytes(ctypes.c_double(3.25)) + bytes(ctypes.c_double(-1e300))
    table[16:64] = bytes((at * 37 + 11) & 255 for at in range(48))
    table[64:144] = bytes((at * 91 + 5) & 255 for at in range(80))
    spin = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    worker = threading.Thread(target=spin, args=(ctypes.addressof(table),), daemon=True)
    worker.start()
    time.sleep(0.05)
    yield
    ctypes.c_uint32.from_address(ctypes.addressof(table) + 0x400).value = 1
    worker.join(10)
    assert not worker.is_alive(), "it spins on"
    raw = table.raw
    same("x87", raw[0x200:0x210], raw[:16])
    same("xmm0", raw[0x210:0x220], raw[16:32])
    same("xmm7", raw[0x230:0x240], raw[32:48])
    same("xmm15", raw[0x240:0x250], raw[48:64])
    same("general", raw[0x250:0x2A0], raw[64:144])
    assert raw[0x221] & 4, "the direction flag"
