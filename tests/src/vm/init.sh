#!/bin/sh
# The first process of a guest: sets the machine up, runs /run.sh, says how that ended, and switches off.
export PATH=/usr/sbin:/usr/bin HOME=/root
if [ "$1" != again ]; then
    # The kernel's first root cannot be left by pivot_root(2): one mount on top of it can.
    mount -o bind / /mnt && cd /mnt && mount -o move . / && exec chroot . /init again
fi
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts none /dev/pts
mount -t tmpfs none /dev/shm
mount -t cgroup2 none /sys/fs/cgroup
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
for turn in 1 2 3; do
    for module in /modules/*.ko; do insmod "$module" 2>/dev/null; done
done
ip link set lo up
chmod 1777 /tmp
echo "the guest is up: $(uname -r)" >/dev/ttyS1
/bin/sh /run.sh >/dev/ttyS1 2>&1 </dev/null
echo "the guest ended: $?" >/dev/ttyS1
poweroff -f
