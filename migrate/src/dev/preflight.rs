//! What this machine must offer before hosts can be made: each thing that is missing is one line.

use std::fs;
use std::path::Path;

use crate::exit::{Exit, Failure};

/// Capabilities without which nothing works: bit and name (capabilities(7)).
const CAPABILITIES: [(u32, &str); 5] = [
    (12, "CAP_NET_ADMIN"),
    (19, "CAP_SYS_PTRACE"),
    (21, "CAP_SYS_ADMIN"),
    (5, "CAP_KILL"),
    (40, "CAP_CHECKPOINT_RESTORE"),
];

/// Checks the machine. The failure lists everything that is missing.
pub(crate) fn check(tried: &str) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(
            Exit::Other,
            tried,
            "it needs root: hosts are namespaces and control groups",
        )
        .advise("run it as root, for example with sudo"));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let missing = missing(&status, &mounts, &|path| Path::new(path).exists());
    if missing.is_empty() {
        return Ok(());
    }
    let mut failure = Failure::new(Exit::Other, tried, "this machine lacks what it needs");
    failure.details = missing;
    Err(failure)
}

fn missing(status: &str, mountinfo: &str, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut missing = Vec::new();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    for (bit, name) in CAPABILITIES {
        if effective & (1 << bit) == 0 {
            missing.push(format!(
                "capability {name}: root has lost it here (a container without --privileged?)"
            ));
        }
    }
    for kind in ["mnt", "pid", "uts", "ipc", "net"] {
        if !exists(&format!("/proc/self/ns/{kind}")) {
            missing.push(format!("{kind} namespaces: the kernel was built without them"));
        }
    }
    if !mountinfo.lines().any(|line| line.contains(" - cgroup2 ")) {
        missing.push("a cgroup2 mount, for its freezer: mount -t cgroup2 none /sys/fs/cgroup".into());
    }
    if !exists("/dev/net/tun") {
        missing.push("/dev/net/tun, which holds packets during a switchover: modprobe tun".into());
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "CapEff:\t000001ffffffffff\n";
    const CGROUP2: &str = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn everything_missing_is_named() {
        assert_eq!(missing(ALL, CGROUP2, &|_| true), Vec::<String>::new());
        let lines = missing("CapEff:\t0000000000200000\n", "", &|path| path != "/dev/net/tun");
        assert_eq!(lines.len(), 6, "{lines:?}");
        assert!(lines[0].contains("CAP_NET_ADMIN"));
        assert!(lines[4].contains("cgroup2"));
        assert!(lines[5].contains("/dev/net/tun"));
        assert_eq!(missing(ALL, CGROUP2, &|path| !path.ends_with("/pid")).len(), 1);
    }
}
