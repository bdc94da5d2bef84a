# Gives state of every kind that a host keeps to the container whose first process is $1. It runs on the container's
# node, where programs have all capabilities.
set -e
pid=$1
nsenter -t "$pid" -n sh -e <<'END'
ip addr add 10.77.0.222/24 dev eth0
ip link add va index 20 mtu 1400 type veth peer name vb index 21
ip link add br0 index 30 type bridge forward_delay 0
ip link set vb master br0
for link in va vb br0; do
    echo 1 > /proc/sys/net/ipv6/conf/$link/disable_ipv6
    ip link set $link up
done
ip addr add 192.0.2.1/24 dev va
ip route add 198.51.100.0/24 via 192.0.2.2 metric 5
ip rule add from 10.77.0.222 table 42 pref 100
nft 'table inet guard { chain input { type filter hook input priority 0; policy accept; ct state established counter accept; }; }'
END
nsenter -t "$pid" -m sh -e <<'END'
mkdir -p /data/mem /data/dir /data/bound
mount -t tmpfs -o size=16m mine /data/mem
head -c 100000 /dev/urandom > /data/mem/content
mount --bind /data/dir /data/bound
mount -o remount,bind,ro /data/bound
END
child=$(pgrep -P "$pid" | head -n 1)
while IFS=: read -r _ controllers path; do
    case $controllers in
        '') dir=/sys/fs/cgroup/unified$path; [ -d "$dir" ] || dir=/sys/fs/cgroup$path ;;
        memory | pids) dir=/sys/fs/cgroup/$controllers$path ;;
        *) continue ;;
    esac
    mkdir -p "$dir/inner/deep"
    echo "$child" > "$dir/inner/deep/cgroup.procs"
    [ "$controllers" != memory ] || echo 1G > "$dir/inner/memory.limit_in_bytes"
    [ "$controllers" != pids ] || echo 50 > "$dir/inner/pids.max"
done < "/proc/$pid/cgroup"
