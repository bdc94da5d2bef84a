"""O_PATH of a file that is deleted"""
# refused: O_PATH
import os

from case import case, same, scratch


@case
def path_deleted():
    open(scratch("file"), "w").close()
    fd = os.open(scratch("file"), os.O_PATH)
    os.unlink(scratch("file"))
    yield
    same("links", os.fstat(fd).st_nlink, 0)
