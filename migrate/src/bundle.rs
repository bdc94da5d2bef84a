//! `dev bundle`: an OCI bundle that runs a program installed on this machine.
//!
//! The root is small and belongs to the bundle: empty directories, over which the machine's own /usr, /bin, /lib,
//! /lib64, /sbin and /etc are bound read-only, and the directories given with `--rw`, which are real and travel with
//! the container.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// Version of the OCI runtime specification that is written.
const OCI_VERSION: &str = "1.0.2";
/// How many ids a container with a user namespace has.
const RANGE: u32 = 65536;
/// Directories of the machine that programs need.
const SYSTEM: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc"];
/// Capabilities that container engines give by default.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Arguments of `dev bundle`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  migrate dev bundle --out /tmp/redis --rw /data -- /usr/bin/redis-server --bind 0.0.0.0 --dir /data")]
pub(crate) struct Options {
    /// Directory of the bundle; created.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Directory inside the container that it can write to; may be given several times.
    #[arg(long, value_name = "PATH")]
    pub(crate) rw: Vec<PathBuf>,
    /// Give the container a user namespace: its ids 0 to 65535 are this machine's from FIRST on.
    #[arg(long, value_name = "FIRST")]
    pub(crate) userns: Option<u32>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

/// Makes the bundle and answers its directory. After Err a part of it may be there.
pub(crate) fn make(options: &Options) -> Result<PathBuf> {
    let bundle = std::path::absolute(&options.out).context("find --out")?;
    let config_path = bundle.join("config.json");
    if config_path.exists() {
        bail!("{} is a bundle already; choose another --out or remove it", bundle.display());
    }
    let program = find(&options.command[0])?;
    let mut args = options.command.clone();
    args[0] = text(&program)?.to_owned();
    for path in &options.rw {
        check_rw(path)?;
    }
    let plan = plan(&program, &options.rw);
    let root = bundle.join("rootfs");
    let made = plan.directories.iter().chain(&options.rw).chain(&plan.binds);
    for path in made {
        let inside = root.join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(&inside).with_context(|| format!("create {}", inside.display()))?;
    }
    for (path, to) in &plan.links {
        let inside = root.join(path.strip_prefix("/").unwrap_or(path));
        std::os::unix::fs::symlink(to, &inside).with_context(|| format!("link {}", inside.display()))?;
    }
    if let Some(first) = options.userns {
        if first == 0 || first.checked_add(RANGE).is_none() {
            bail!("--userns {first}: give the first of {RANGE} ids that nothing else on this machine has");
        }
        give(&root, first)?;
    }
    let config = config(&args, &plan.binds, options)?;
    fs::write(&config_path, format!("{config:#}\n"))
        .with_context(|| format!("write {}", config_path.display()))?;
    Ok(bundle)
}

/// Gives a directory, and everything in it, to the root of a user namespace.
fn give(path: &Path, owner: u32) -> Result<()> {
    std::os::unix::fs::lchown(path, Some(owner), Some(owner))
        .with_context(|| format!("chown {}", path.display()))?;
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
            give(&entry?.path(), owner)?;
        }
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// The program as an absolute path without links; a bare name is looked up in PATH.
fn find(program: &str) -> Result<PathBuf> {
    let given = Path::new(program);
    let path = if given.components().count() > 1 {
        std::path::absolute(given)?
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        dirs.map(|dir| dir.join(program))
            .find(|path| path.is_file())
            .with_context(|| format!("{program} is not in PATH"))?
    };
    if !path.is_file() {
        bail!("{} is not a file", path.display());
    }
    Ok(path)
}

fn check_rw(path: &Path) -> Result<()> {
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path == Path::new("/") {
        bail!("--rw {}: give an absolute path below /, without ..", path.display());
    }
    let shadowed = SYSTEM.iter().chain(&["/proc", "/sys", "/dev", "/tmp"]).find(|dir| path.starts_with(dir));
    match shadowed {
        Some(dir) => bail!("--rw {}: {dir} is something else in the container", path.display()),
        None => Ok(()),
    }
}

/// What the root holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Directories of the machine that are bound.
    binds: BTreeSet<PathBuf>,
    /// Links copied from the machine: on a merged-/usr system /bin is one.
    links: Vec<(PathBuf, PathBuf)>,
    /// Empty directories.
    directories: Vec<PathBuf>,
}

fn plan(program: &Path, rw: &[PathBuf]) -> Plan {
    let mut plan = Plan {
        directories: ["/proc", "/sys", "/dev", "/tmp", "/run", "/root"].map(PathBuf::from).to_vec(),
        ..Plan::default()
    };
    for dir in SYSTEM.map(PathBuf::from) {
        match fs::read_link(&dir) {
            Ok(to) => plan.links.push((dir, to)),
            Err(_) if dir.is_dir() => drop(plan.binds.insert(dir)),
            Err(_) => {}
        }
    }
    // Where the program itself lies, and where it lies once links are followed.
    let own = [Some(program.to_path_buf()), program.canonicalize().ok()];
    for dir in own.iter().flatten().filter_map(|path| path.parent()) {
        let visible =
            SYSTEM.iter().any(|system| dir.starts_with(system)) || rw.iter().any(|rw| dir.starts_with(rw));
        if !visible && dir != Path::new("/") {
            plan.binds.insert(dir.to_path_buf());
        }
    }
    plan
}

fn config(args: &[String], binds: &BTreeSet<PathBuf>, options: &Options) -> Result<Value> {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
               "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]}),
    ];
    for dir in binds {
        let dir = text(dir)?;
        mounts.push(json!({"destination": dir, "type": "bind", "source": dir, "options": ["rbind", "ro"]}));
    }
    let rw = options.rw.iter().map(|path| text(path)).collect::<Result<Vec<_>>>()?.join(",");
    let capabilities = json!(CAPABILITIES);
    let mut config = json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "container",
        "mounts": mounts,
        "annotations": {"dev.gantry.bundle/program": args[0], "dev.gantry.bundle/rw": rw},
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "network"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/sysrq-trigger"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    });
    if let Some(first) = options.userns {
        let mappings = json!([{"containerID": 0, "hostID": first, "size": RANGE}]);
        config["linux"]["uidMappings"] = mappings.clone();
        config["linux"]["gidMappings"] = mappings;
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.push(json!({"type": "user"}));
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(out: &Path, rw: &[&str], command: &[&str]) -> Options {
        Options {
            out: out.into(),
            rw: rw.iter().map(PathBuf::from).collect(),
            userns: None,
            command: command.iter().map(|s| (*s).to_owned()).collect(),
        }
    }

    #[test]
    fn a_bundle_runs_a_program_of_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("b");
        make(&options(&out, &["/data/deep"], &["sh", "-c", "true"])).unwrap();
        assert!(out.join("rootfs/data/deep").is_dir());
        assert!(out.join("rootfs/tmp").is_dir());
        let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        let args = config["process"]["args"].as_array().unwrap();
        assert!(args[0].as_str().unwrap().ends_with("/sh") && args[0].as_str().unwrap().starts_with('/'));
        assert_eq!(args[1..], ["-c", "true"]);
        let mount =
            |at: &str| config["mounts"].as_array().unwrap().iter().find(|m| m["destination"] == at).cloned();
        assert_eq!(mount("/usr").unwrap()["options"], json!(["rbind", "ro"]));
        assert_eq!(mount("/tmp").unwrap()["type"], "tmpfs");
        assert!(mount("/data/deep").is_none(), "it is part of the root and travels with it");
        assert!(config["linux"].get("seccomp").is_none());
        assert!(make(&options(&out, &[], &["sh"])).is_err(), "a bundle is not overwritten");
    }

    #[test]
    fn a_user_namespace_owns_its_root() {
        use std::os::unix::fs::MetadataExt as _;
        // Only root can give files away.
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("b");
        let options = Options { userns: Some(100_000), ..options(&out, &["/data"], &["sh"]) };
        make(&options).unwrap();
        for path in ["rootfs", "rootfs/data", "rootfs/dev"] {
            let owner = fs::symlink_metadata(out.join(path)).unwrap();
            assert_eq!((owner.uid(), owner.gid()), (100_000, 100_000), "{path}");
        }
        let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["linux"]["gidMappings"][0]["hostID"], 100_000);
        assert!(config["linux"]["namespaces"].as_array().unwrap().contains(&json!({"type": "user"})));
        let zero = Options { out: dir.path().join("c"), userns: Some(0), ..options };
        assert!(make(&zero).is_err());
    }

    #[test]
    fn a_program_elsewhere_brings_its_directory() {
        let program = std::env::current_exe().unwrap();
        let plan = plan(&program, &[]);
        assert!(plan.binds.contains(program.parent().unwrap()), "{plan:?}");
    }

    #[test]
    fn writable_paths_must_not_shadow() {
        for good in ["/data", "/srv/a/b", "/usrdata"] {
            check_rw(Path::new(good)).unwrap();
        }
        for bad in ["data", "/", "/usr/x", "/tmp", "/a/../etc", "/proc"] {
            assert!(check_rw(Path::new(bad)).is_err(), "{bad}");
        }
        assert!(find("no-such-program-here").is_err());
    }
}
