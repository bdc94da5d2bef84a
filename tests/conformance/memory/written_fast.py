"""A thread that writes page after page as fast as it can while the memory is copied"""
import mmap
import threading

from case import case, same

PAGE, PAGES = mmap.PAGESIZE, 4000


@case
def written_fast():
    memory = mmap.mmap(-1, PAGES * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    stop, rounds = threading.Event(), [0]

    def write():
        while not stop.is_set():
            rounds[0] += 1
            piece = rounds[0].to_bytes(8, "little") * 4
            for page in range(PAGES):
                memory[page * PAGE + 64:page * PAGE + 96] = piece

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield
    stop.set()
    thread.join(20)
    piece = rounds[0].to_bytes(8, "little") * 4
    wrong = [page for page in range(PAGES) if memory[page * PAGE + 64:page * PAGE + 96] != piece]
    same("pages of another round", wrong, [])
