//! State that hosts keep for a container, in amounts that can be measured.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::cluster::Cluster;
use crate::workload::SERVED_PROGRAM;

/// What [`start`] gives to its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing: what the others are compared with.
    Nothing,
    /// 50 control groups in every hierarchy, with limits.
    Groups,
    /// Ten interfaces, 100 routes, 200 rules of nftables whose counters stand still.
    Network,
    /// The same, and one more rule, which counts every packet.
    Counting,
    /// 100 mounts.
    Mounts,
    /// A tmpfs with 200 MiB in one file.
    Tmpfs,
    /// 100,000 files, of which the program changes ten in every 20 ms.
    Files,
}

impl State {
    /// What makes it, run on the node as root with the container's first process as `$1`.
    fn script(self) -> String {
        match self {
            Self::Nothing | Self::Files => String::new(),
            Self::Groups => GROUPS.to_owned(),
            Self::Network => NETWORK.to_owned(),
            Self::Counting => format!("{NETWORK}nsenter -t \"$1\" -n nft add rule ip t c counter accept"),
            Self::Mounts => MOUNTS.to_owned(),
            Self::Tmpfs => TMPFS.to_owned(),
        }
    }

    /// What prints it.
    fn shown(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Groups => GROUPS_SHOWN,
            Self::Network | Self::Counting => NETWORK_SHOWN,
            Self::Mounts => "awk '{print $5, $6}' /proc/$1/mountinfo | sort",
            Self::Tmpfs => "nsenter -t \"$1\" -m sha256sum /data/mem/content",
            Self::Files => FILES_SHOWN,
        }
    }
}

const GROUPS: &str = r#"
while IFS=: read -r _ controllers path; do
    dir=/sys/fs/cgroup/${controllers:-unified}$path
    case $controllers in name=*) continue ;; esac
    [ -d "$dir" ] || dir=/sys/fs/cgroup$path
    [ -d "$dir" ] || continue
    for n in $(seq 50); do
        mkdir "$dir/g$n"
        [ "$controllers" != memory ] || echo $((64 + n))M > "$dir/g$n/memory.limit_in_bytes"
        [ "$controllers" != pids ] || echo $((100 + n)) > "$dir/g$n/pids.max"
    done
done < /proc/$1/cgroup
"#;

const GROUPS_SHOWN: &str = r#"
while IFS=: read -r _ controllers path; do
    dir=/sys/fs/cgroup/${controllers:-unified}$path
    [ -d "$dir" ] || dir=/sys/fs/cgroup$path
    for group in "$dir"/g*; do
        [ -d "$group" ] || continue
        echo "$controllers ${group##*/}"
        for limit in "$group"/memory.limit_in_bytes "$group"/pids.max; do [ ! -e "$limit" ] || cat "$limit"; done
    done
done < /proc/$1/cgroup
"#;

const NETWORK_SHOWN: &str = r#"
nsenter -t "$1" -n sh -e <<'END'
ip -4 -o addr show | awk '{print $2, $4}' | sort
ip -o link show | awk -F': ' '{print $2}' | sed 's/@.*//' | sort
ip -4 route show | sort
nft -s list ruleset
END
"#;

/// A file that is just being written is looked at again.
const FILES_SHOWN: &str = r#"
nsenter -t "$1" -m sh -e <<'END'
find /data/files -type f | wc -l
right='^([0-9]+|changed [0-9]+)$'
wrong=$(find /data/files -type f -exec grep -LE "$right" {} + || true)
for again in 1 2 3; do
    sleep 0.1
    [ -z "$wrong" ] || wrong=$(grep -LE "$right" $wrong || true)
done
echo "wrong: $wrong"
END
"#;

const NETWORK: &str = r#"
nsenter -t "$1" -n sh -e <<'END'
ip addr add 10.9.0.2/16 dev eth0
for n in 0 1 2 3; do
    ip link add a$n type veth peer name b$n
    for link in a$n b$n; do echo 1 > /proc/sys/net/ipv6/conf/$link/disable_ipv6; ip link set $link up; done
done
ip link add br0 type bridge forward_delay 0; echo 1 > /proc/sys/net/ipv6/conf/br0/disable_ipv6
ip link set a0 master br0; ip link set br0 up
for n in $(seq 100); do ip route add 172.16.$n.0/24 via 10.9.0.$((n + 2)); done
{
    echo 'table ip t { chain c { type filter hook input priority 0;'
    for n in $(seq 200); do echo "ip saddr 10.1.0.$n tcp dport $((1000 + n)) counter accept"; done
    echo '}; }'
} | nft -f -
END
"#;

const MOUNTS: &str = r#"
nsenter -t "$1" -m sh -e <<'END'
for n in $(seq 50); do
    mkdir -p /data/t$n /data/b$n
    mount -t tmpfs -o size=1m t$n /data/t$n
    mount --bind /data/t$n /data/b$n
done
END
"#;

const TMPFS: &str = r#"
nsenter -t "$1" -m sh -e <<'END'
mkdir -p /data/mem
mount -t tmpfs -o size=300m mem /data/mem
head -c 209715200 /dev/urandom > /data/mem/content
END
"#;

/// Starts a container `name` with it on node-a; a program answers on port 7000.
///
/// # Errors
/// When any of that fails.
pub fn start(cluster: &Cluster, name: &str, ip: &str, state: State) -> Result<()> {
    let mut command = vec!["/usr/bin/python3", "/data/served.py"];
    if state == State::Files {
        command.push("/data/files");
    }
    let bundle = cluster.make_bundle(name, &["/data"], &command)?;
    let data = bundle.join("rootfs/data");
    fs::write(data.join("served.py"), SERVED_PROGRAM)?;
    if state == State::Files {
        fill(&data.join("files"))?;
    }
    cluster.start_bundle(name, "node-a", &format!("{ip}/24"), &bundle)?;
    cluster.wait_for_port(format!("{ip}:7000").parse()?)?;
    on_node(cluster, "node-a", &state.script())?;
    Ok(())
}

/// What of its state must be the same after moves, as text; the container is on `node`.
///
/// # Errors
/// When it cannot be read.
pub fn shown(cluster: &Cluster, node: &str, state: State) -> Result<String> {
    on_node(cluster, node, state.shown())
}

/// Runs a script on a node as root with the container's first process as `$1`; answers what it prints.
fn on_node(cluster: &Cluster, node: &str, script: &str) -> Result<String> {
    let first = "exec sh -ec \"$1\" sh \"$(pgrep -o -f '^/usr/bin/python3 /data/served.py')\"";
    Ok(cluster.exec_ok(node, &["sh", "-ec", first, "sh", script])?.stdout)
}

fn fill(dir: &Path) -> Result<()> {
    for number in 0..100_000 {
        let at = dir.join((number / 100).to_string());
        if number % 100 == 0 {
            fs::create_dir_all(&at)?;
        }
        fs::write(at.join(number.to_string()), number.to_string())?;
    }
    Ok(())
}
