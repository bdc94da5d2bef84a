"""An overlay of directories that only a nested mount namespace has"""
# refused-here: host boxed: mnt namespace
# refused-here: move: of its overlay is another directory
# with: CAP_SYS_ADMIN
import os

from case import case, same, scratch, server


@case
def namespace_mnt_overlay_own():
    os.mkdir(scratch("own"))
    pid, ask = server()
    ask("own_mounts() or mount('own', scratch('own'), 'tmpfs')")
    ask("[os.mkdir(scratch('own/' + name)) for name in ('lower', 'lowest', 'merged')] and open(scratch('own/lower/a'), 'w').close()")
    data = f"lowerdir={scratch('own/lower')}:{scratch('own/lowest')}"
    ask(f"mount('all', scratch('own/merged'), 'overlay', 1, '{data}')")
    yield
    same("content", ask("'a' in os.listdir(scratch('own/merged'))"), True)
