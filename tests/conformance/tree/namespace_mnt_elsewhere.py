"""A process in a mount namespace of its own whose working directory is on a mount of the one that it left"""
# refused-here: host boxed: mnt namespace
# refused-here: move: is on a mount of another mount namespace
# with: CAP_SYS_ADMIN
import os

from case import case, same, scratch, server


@case
def namespace_mnt_elsewhere():
    os.mkdir(scratch("here"))
    pid, ask = server()
    ask("globals().update(old=os.open(scratch('here'), os.O_RDONLY)) or own_mounts() or os.fchdir(old) or os.close(old)")
    ask("mount('over', scratch('here'), 'tmpfs') or open('file', 'w').close()")
    yield
    same("its directory", (ask("os.listdir('.')"), ask("os.listdir(scratch('here'))"), os.listdir(scratch("here"))), (["file"], [], ["file"]))
