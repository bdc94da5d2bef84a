"""Mount namespaces that come and go while they are copied, and mounts in them"""
# refused-here: host boxed: mnt namespace
# with: CAP_SYS_ADMIN
import os
import signal

from case import case, forever, fork, mount, mounts, own_mounts, read, same, scratch, server, until

POINTS = "[row[0][len(scratch('')):] for row in mounts() if row[0].startswith(scratch(''))]"


@case
def namespace_mnt_changes():
    for name in ("one", "two"):
        os.mkdir(scratch(name))
    stays, ask = server()
    ask("own_mounts() or mount('one', scratch('one'), 'tmpfs')")
    others = []
    turns = [0]

    def change():
        turns[0] += 1
        # Not for good: a move ends only when it stands still.
        if turns[0] % 20 or turns[0] > 400:
            return
        number = turns[0] // 20
        if number % 2:
            ask(f"mount('two', scratch('two'), 'tmpfs') or open(scratch('two/at'), 'w').write('{number}')")
        else:
            ask("syscall(166, scratch('two').encode(), 2)")
        ask(f"open(scratch('one/at'), 'w').write('{number}')")
        if len(others) > 1:
            pid = others.pop(0)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        others.append(fork(lambda: visit(number)))
        until("its file", lambda: os.path.exists(f"/proc/{others[-1]}/root{scratch('one/done')}"))

    def visit(number):
        own_mounts()
        mount("one", scratch("one"), "tmpfs")
        for name in ("of", "done"):
            with open(scratch(f"one/{name}"), "w") as file:
                file.write(str(number))
        forever()

    turns[0] = 19
    change()
    yield change
    same("a mount", ask(POINTS), ["one", "two"] if (min(turns[0], 400) // 20) % 2 else ["one"])
    same("its content", int(ask("read(scratch('one/at'))")), min(turns[0], 400) // 20)
    links = {os.readlink(f"/proc/{pid}/ns/mnt") for pid in [stays] + others}
    same("namespaces", len(links), 1 + len(others))
    last = min(turns[0], 400) // 20
    content = [int(read(f"/proc/{pid}/root{scratch('one/of')}")) for pid in others]
    same("content of the others", content, list(range(last - len(others) + 1, last + 1)))
    same("mounts of the others", [len(mounts(pid)) for pid in others], [len(mounts()) + 1] * len(others))
