"""Protection keys: of a mapping, and the rights to it of each thread"""
import mmap
import threading

from case import address_of, case, libc, mapping, same, syscall


@case
def protection_keys():
    memory = mmap.mmap(-1, 4 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[0] = 7
    try:
        # PKEY_DISABLE_WRITE
        key = syscall(330, 0, 2)
    except OSError:
        # This processor has none.
        yield
        return
    syscall(329, address_of(memory), 4 * mmap.PAGESIZE, 3, key)
    libc.pkey_set(key, 2)
    go, found = threading.Event(), []

    def thread():
        libc.pkey_set(key, 1)
        go.wait()
        found.append(libc.pkey_get(key))

    worker = threading.Thread(target=thread, daemon=True)
    worker.start()
    yield
    same("key", int(mapping(address_of(memory))["ProtectionKey"]), key)
    same("rights", libc.pkey_get(key), 2)
    go.set()
    worker.join(10)
    same("rights of a thread", found, [1])
    same("the next key", syscall(330, 0, 0), key + 1)
