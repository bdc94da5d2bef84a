"""O_PATH: a file, a directory, a symbolic link, a fifo"""
import fcntl
import os
import stat

from case import case, same, scratch


@case
def path_only():
    open(scratch("file"), "w").close()
    os.mkdir(scratch("dir"))
    os.symlink("file", scratch("link"))
    os.mkfifo(scratch("fifo"))
    kinds = {"file": stat.S_ISREG, "dir": stat.S_ISDIR, "link": stat.S_ISLNK, "fifo": stat.S_ISFIFO}
    fds = {name: os.open(scratch(name), os.O_PATH | os.O_NOFOLLOW) for name in kinds}
    flags = {name: fcntl.fcntl(fd, fcntl.F_GETFL) for name, fd in fds.items()}
    yield
    for name, fd in fds.items():
        assert kinds[name](os.fstat(fd).st_mode), name
        same("flags of " + name, fcntl.fcntl(fd, fcntl.F_GETFL), flags[name])
    same("link", os.readlink("", dir_fd=fds["link"]), "file")
    os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fds["dir"]))
    assert os.path.exists(scratch("dir/x"))
