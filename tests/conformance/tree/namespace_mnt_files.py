"""Files on mounts of a nested mount namespace: deleted ones, a fifo, a lock, a watch, a shared mapping, a thread, one that waits in a message"""
# refused-here: host boxed: mnt namespace
# with: CAP_SYS_ADMIN
import os
import socket

from case import case, mounts, same, scratch, server


@case
def namespace_mnt_files():
    ours, theirs = socket.socketpair()
    os.mkdir(scratch("own"))
    # Of the same name outside.
    for name in ("gone", "fifo", "watched", "here"):
        open(scratch(f"own/{name}"), "w").close()
    pid, ask = server()
    ask("own_mounts() or mount('own', scratch('own'), 'tmpfs') or os.chdir(scratch('own'))")
    ask("[open(name, 'w').write(name * 1000) for name in ('gone', 'watched', 'here')] and os.mkfifo('fifo')")
    ask("globals().update(gone=open('gone', 'r+'), fifo=open('fifo', 'rb+', 0), here=open('here', 'rb+'), path=os.open('here', 0x200000), null=open('/dev/null', 'wb'))")
    ask("gone.seek(500) and fifo.write(b'through') and os.unlink('gone') or None")
    # LOCK_EX, an inotify instance that does not wait, IN_MODIFY.
    ask("syscall(73, here.fileno(), 2) or globals().update(notify=syscall(294, 0x800)) or syscall(254, notify, b'watched', 2) and None")
    ask("os.mkdir('left') or os.chdir('left') or os.rmdir(scratch('own/left'))")
    ask("globals().update(shared=mmap.mmap(here.fileno(), 4000), private=mmap.mmap(gone.fileno(), 4000, flags=2))")
    ask("shared.__setitem__(0, 88) or private.__setitem__(1, 89)")
    ask("globals().update(threading=__import__('threading'), turns=[]) or threading.Thread(target=lambda: [turns.append(time.sleep(0.01)) for _ in iter(int, 1)], daemon=True).start()")
    ask(f"globals().update(theirs=socket.socket(fileno={theirs.fileno()}))")
    ask("socket.send_fds(theirs, [b'x'], [os.open(scratch('own/watched'), os.O_RDONLY)])")
    points = ask("[mount_of(fd) for fd in (gone.fileno(), fifo.fileno(), here.fileno(), path)]")
    assert points == [scratch("own")] * 4, points
    outside = mounts()
    yield
    same("mounts", (ask("[mount_of(fd) for fd in (gone.fileno(), fifo.fileno(), here.fileno(), path)]"), mounts()), (points, outside))
    same("a deleted file", ask("(gone.tell(), gone.read(8), os.fstat(gone.fileno()).st_nlink, bytes(private[:8]))"), (500, "gonegone", 0, b"gYnegone"))
    same("a fifo", ask("os.read(fifo.fileno(), 100)"), b"through")
    same("a lock", ask("syscall(73, os.open(scratch('own/here'), 0), 6)"), -11)
    same("a file", ask("(bytes(shared[:8]), open(scratch('own/here'), 'rb').read(8), os.fstat(path).st_ino == os.stat(scratch('own/here')).st_ino)"), (b"Xerehere", b"Xerehere", True))
    same("a watch", ask("open(scratch('own/watched'), 'a').write('x') and len(os.read(notify, 100))"), 16)
    same("its directory", ask("(os.getcwd())"), -2)
    same("a device", ask("null.write(b'x')"), 1)
    same("a thread", ask("until('a turn', lambda: len(turns) > 3, 5)"), True)
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    same("one from a message", (os.pread(fds[0], 14, 0), os.fstat(fds[0]).st_dev == os.stat(scratch("own")).st_dev), (b"watchedwatched", False))
    same("what it covers", [os.stat(scratch(f"own/{name}")).st_size for name in sorted(os.listdir(scratch("own")))], [0] * 4)
