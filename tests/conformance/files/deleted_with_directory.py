"""An open file that was deleted along with its directories"""
import os
import shutil

from case import case, same, scratch


@case
def deleted_with_directory():
    os.makedirs(scratch("a/b/c"))
    fd = os.open(scratch("a/b/c/file"), os.O_CREAT | os.O_RDWR)
    os.write(fd, b"content")
    shutil.rmtree(scratch("a"))
    before = os.stat(scratch("")).st_mtime_ns
    link = os.readlink(f"/proc/self/fd/{fd}")
    yield
    same("content", os.pread(fd, 9, 0), b"content")
    same("its link", os.readlink(f"/proc/self/fd/{fd}"), link)
    same("what is there", os.path.exists(scratch("a")), False)
    same("times of the directory above", os.stat(scratch("")).st_mtime_ns, before)
