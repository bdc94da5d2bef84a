//! What the tests of the runtime share: bundles of programs of this machine, LANs made of namespaces, and
//! guards that remove everything again.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

pub(crate) mod agent;
pub(crate) mod moving;
pub(crate) mod pair;

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use node_agent::runtime::{ContainerName, Options, RunRequest, Runtime};
use serde_json::{Value, json};

/// Waits until `condition` holds; panics with `what` after 20 s.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "waited 20 s for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A name that no other test and no other run of it has.
pub(crate) fn unique(prefix: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}-{}", &id[..8])
}

/// A bundle that runs a program of this machine, with the machine's own /usr, /etc and so on.
pub(crate) fn bundle(dir: &Path, args: &[&str], change: impl FnOnce(&mut Value)) -> PathBuf {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}),
        json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]}),
    ];
    for path in ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc"] {
        if Path::new(path).exists() {
            mounts.push(
                json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}),
            );
        }
    }
    let caps = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
    ];
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs"},
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "uts"},
                {"type": "ipc"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"]
        }
    });
    change(&mut config);
    let bundle = dir.join(unique("bundle"));
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    bundle
}

/// A runtime with a state directory and a control group of its own. Everything that it started is removed
/// when this is dropped.
pub(crate) struct Node {
    pub(crate) runtime: Runtime,
    pub(crate) dir: tempfile::TempDir,
    options: Options,
}

impl Node {
    pub(crate) fn new(bridge: Option<String>) -> Self {
        let dir = tempfile::Builder::new().prefix("gantry-test-").tempdir().unwrap();
        let options = Options {
            state_dir: dir.path().join("state"),
            cgroup_parent: unique("gantry-test"),
            bridge,
            exe: PathBuf::from(env!("CARGO_BIN_EXE_node-agent")),
        };
        Self { runtime: Runtime::open(options.clone()).unwrap(), dir, options }
    }

    /// The same node's runtime as a restarted agent would open it.
    pub(crate) fn reopened(&self) -> Runtime {
        Runtime::open(self.options.clone()).unwrap()
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn bundle(&self, args: &[&str]) -> PathBuf {
        bundle(self.dir.path(), args, |_| {})
    }

    pub(crate) fn bundle_with(&self, args: &[&str], change: impl FnOnce(&mut Value)) -> PathBuf {
        bundle(self.dir.path(), args, change)
    }

    /// Starts a container without a link.
    pub(crate) fn run(&self, bundle: &Path) -> ContainerName {
        let name = ContainerName::new(unique("c")).unwrap();
        self.runtime.run(request(&name, bundle)).unwrap_or_else(|error| panic!("{}", chain(&error)));
        name
    }

    pub(crate) fn log(&self, name: &ContainerName) -> String {
        fs::read_to_string(self.runtime.state().container(name).log()).unwrap_or_default()
    }

    pub(crate) fn exec(&self, name: &ContainerName, args: &[&str]) -> Output {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        self.runtime.exec(name, &args).unwrap().output().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for name in self.runtime.names().unwrap_or_default() {
            let record = self.runtime.record(&name);
            // What a failed test left in the middle of a migration is not deleted as a container.
            if let (Err(_), Ok(record)) = (self.runtime.delete(&name, true), record) {
                let _ = record.cgroup.kill(Duration::from_secs(5));
                let _ = record.cgroup.remove();
                let _ = node_agent::network::remove(&record.link);
            }
        }
        node_agent::runtime::cgroup::remove_parent(self.runtime.layout(), &self.options.cgroup_parent);
    }
}

pub(crate) fn request(name: &ContainerName, bundle: &Path) -> RunRequest {
    RunRequest { name: name.clone(), bundle: bundle.to_owned(), ip: None, mac: None, labels: BTreeMap::new() }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// A bridge in this network namespace with a client in a namespace of its own.
pub(crate) struct Lan {
    pub(crate) bridge: String,
    pub(crate) client: String,
    /// The first three bytes of its network.
    pub(crate) net: [u8; 3],
}

static NEXT_NET: Mutex<u8> = Mutex::new(0);

impl Lan {
    pub(crate) fn new() -> Self {
        let id = &unique("")[1..7];
        let mut next = NEXT_NET.lock().unwrap();
        *next += 1;
        let pid = std::process::id();
        let net = [10, (pid % 250) as u8, *next];
        let lan = Self { bridge: format!("gtb{id}"), client: format!("gtc{id}"), net };
        let veth = format!("gtv{id}");
        let bridge = &lan.bridge;
        let client = &lan.client;
        ip(&format!("link add {bridge} type bridge forward_delay 0"));
        ip(&format!("link set {bridge} up"));
        ip(&format!("netns add {client}"));
        ip(&format!("link add {veth} type veth peer name eth0 netns {client}"));
        ip(&format!("link set {veth} master {bridge} up"));
        ip(&format!("-n {client} addr add {}/24 dev eth0", lan.address(1)));
        ip(&format!("-n {client} link set eth0 up"));
        ip(&format!("-n {client} link set lo up"));
        lan
    }

    pub(crate) fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.net;
        Ipv4Addr::new(a, b, c, host)
    }

    /// Runs a command in the client's namespace.
    pub(crate) fn client(&self, args: &[&str]) -> Output {
        Command::new("ip").args(["netns", "exec", &self.client]).args(args).output().unwrap()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.client]).status();
        let _ = Command::new("ip").args(["link", "del", &self.bridge]).status();
    }
}

pub(crate) fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}
