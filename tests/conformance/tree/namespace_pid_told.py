"""Numbers that the kernel keeps for a process in a pid namespace: of threads, timers, owners of descriptors, locks, peers"""
# with: CAP_SYS_ADMIN
import os

from case import case, kid, same, server

# A process of two threads: a timer that signals the other one, a pipe whose signals go to it, a signal that waits for it.
SETUP = """(
    KIDS.update(ready=threading.Event(), go=threading.Event(), got=[]),
    signal.pthread_sigmask(signal.SIG_BLOCK, {34, 35, 36, 37}),
    KIDS.update(thread=threading.Thread(target=lambda: (
        KIDS.update(tid=threading.get_native_id()), KIDS['ready'].set(), KIDS['go'].wait(),
        KIDS['got'].extend((i.si_signo, i.si_pid) for i in (signal.sigtimedwait({n}, 10) for n in (34, 35, 36))),
        KIDS['ready'].set()))),
    KIDS['thread'].start(), KIDS['ready'].wait(), KIDS['ready'].clear(),
    KIDS.update(event=bytearray(64)),
    struct.pack_into('QiiI', KIDS['event'], 0, 0, 34, 4, KIDS['tid']),
    KIDS.update(timer=ctypes.c_int(-1)),
    syscall(222, 1, ctypes.byref(ctypes.c_char.from_buffer(KIDS['event'])), ctypes.byref(KIDS['timer'])),
    KIDS.update(pipe=os.pipe()),
    fcntl.fcntl(KIDS['pipe'][0], 10, 35),
    fcntl.fcntl(KIDS['pipe'][0], 15, struct.pack('ii', 0, KIDS['tid'])),
    fcntl.fcntl(KIDS['pipe'][0], fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK),
    signal.pthread_kill(KIDS['thread'].ident, 36),
    os.kill(os.getpid(), 37),
    KIDS.update(pair=socket.socketpair(), pidfd=os.pidfd_open(os.getpid())),
    KIDS.update(file=open(scratch('locked'), 'w')),
    fcntl.lockf(KIDS['file'], fcntl.LOCK_EX),
) and None"""
OWNER = "struct.unpack('ii', fcntl.fcntl(KIDS['pipe'][0], 16, bytes(8)))"
PEER = "struct.unpack('iii', KIDS['pair'][0].getsockopt(1, 17, 12))[0]"
HOLDER = "struct.unpack('hhqqi', fcntl.fcntl(os.open(scratch('locked'), os.O_RDWR), fcntl.F_GETLK, struct.pack('hhqqi', 1, 0, 0, 0, 0))[:28])[4]"
GO = """(
    os.write(KIDS['pipe'][1], b'x'),
    KIDS.update(when=bytearray(struct.pack('qqqq', 0, 0, 0, 1000000))),
    syscall(223, KIDS['timer'], 0, ctypes.byref(ctypes.c_char.from_buffer(KIDS['when'])), 0),
    KIDS['go'].set(), KIDS['ready'].wait(20)) and KIDS['got']"""


@case
def namespace_pid_told():
    outer, ask = server()
    ask("syscall(272, 0x20000000)")
    init, ask_init = kid(ask, "init")
    worker, ask_worker = kid(ask_init, "worker")
    ask_worker("[globals().update({name: __import__(name)}) for name in ('threading', 'struct', 'fcntl')] and None")
    ask_init("[globals().update({name: __import__(name)}) for name in ('struct', 'fcntl')] and None")
    ask_worker(SETUP)
    tid = ask_worker("KIDS['tid']")
    assert tid == worker + 1, (tid, worker)

    def told():
        return ask_worker(OWNER), ask_worker(PEER), ask_init(HOLDER), ask_worker("os.readlink('/proc/self/fd/%d' % KIDS['pidfd'])")

    before = told()
    assert before[:3] == ((0, tid), worker, worker), before
    yield
    same("owner, peer, holder of the lock", told()[:3], before[:3])
    same("threads", ask_worker("(KIDS['thread'].is_alive(), KIDS['thread'].native_id)"), (True, tid))
    same("a signal through the pidfd", ask_worker("signal.pidfd_send_signal(KIDS['pidfd'], 0)"), None)
    got = ask_worker(GO)
    same("signals of the thread", [signal for signal, _ in got], [34, 35, 36])
    same("who sent the last", got[2][1], worker)
    same("the signal of the process", ask_worker("(lambda i: (i.si_signo, i.si_pid))(signal.sigtimedwait({37}, 10))"), (37, worker))
