"""An open directory that was removed"""
# refused: deleted directory
import os

from case import case, scratch


@case
def deleted_directory():
    os.mkdir(scratch("gone"))
    fd = os.open(scratch("gone"), os.O_RDONLY)
    os.rmdir(scratch("gone"))
    yield
    assert os.listdir(fd) == []
