"""An open directory that was removed"""
import os

from case import case, same, scratch


@case
def deleted_directory():
    os.makedirs(scratch("gone/below"))
    fds = [os.open(scratch("gone"), os.O_RDONLY), os.open(scratch("gone/below"), os.O_RDONLY | os.O_DIRECTORY)]
    os.chmod(scratch("gone"), 0o751)
    os.utime(scratch("gone/below"), ns=(1, 2_000_000_003))
    os.rmdir(scratch("gone/below"))
    os.rmdir(scratch("gone"))
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
    before = os.stat(scratch("")).st_mtime_ns
    times = [os.fstat(fd).st_mtime_ns for fd in fds]
    yield
    same("what is in it", [os.listdir(fd) for fd in fds], [[], []])
    same("mode", os.fstat(fds[0]).st_mode, 0o040751)
    same("links", [os.fstat(fd).st_nlink for fd in fds], [0, 0])
    same("times", [os.fstat(fd).st_mtime_ns for fd in fds], times)
    same("names", [os.readlink(f"/proc/self/fd/{fd}") for fd in fds], links)
    same("what is there", os.path.exists(scratch("gone")), False)
    same("times of the directory above", os.stat(scratch("")).st_mtime_ns, before)
    try:
        os.open("file", os.O_CREAT | os.O_RDWR, dir_fd=fds[0])
        assert False, "a file can be made there"
    except FileNotFoundError:
        pass
