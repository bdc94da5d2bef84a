"""Holds something that cannot move: a lease on a file, a netlink socket or an io_uring."""
import ctypes, fcntl, os, socket, sys, threading

kind = sys.argv[1]
if kind == "lease":
    held = os.open("/data/leased", os.O_RDONLY | os.O_CREAT)
    fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_RDLCK)
elif kind == "netlink":
    held = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
else:
    held = ctypes.CDLL(None, use_errno=True).syscall(425, 4, ctypes.create_string_buffer(120))
    if held < 0:
        sys.exit(f"io_uring_setup: {os.strerror(ctypes.get_errno())}")
print("holds", kind, held, flush=True)
threading.Event().wait()
