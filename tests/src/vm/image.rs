//! The initial file system of a guest: programs of this machine with their libraries, modules of its kernel, an init.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

use super::fetch::Kernel;
use crate::workload::system::{copy, find, needed};

/// The first process.
const INIT: &str = include_str!("init.sh");
/// Modules in the order in which they are inserted; what a kernel has built in is not there.
const MODULES: &[&str] = &[
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "llc",
    "stp",
    "bridge",
    "veth",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    "netlink_diag",
    "raw_diag",
    "af_packet_diag",
    "nfnetlink",
    "libcrc32c",
    "nf_tables",
    "nf_defrag_ipv4",
    "nf_defrag_ipv6",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nft_chain_nat",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_limit",
    "nft_log",
    "nft_reject",
    "nf_reject_ipv4",
    "nf_reject_ipv6",
    "nft_reject_inet",
    "tun",
    "overlay",
    "sch_ingress",
    "cls_u32",
    "act_mirred",
    "macvlan",
    "dummy",
];
/// Applets that init and the tests use.
const APPLETS: &[&str] = &[
    "sh", "brctl", "cat", "chroot", "cp", "cut", "date", "dmesg", "echo", "env", "false", "free", "grep",
    "head", "insmod", "ip", "kill", "ls", "mkdir", "mount", "poweroff", "ps", "rm", "sed", "sleep", "stat",
    "tail", "test", "touch", "tr", "true", "umount", "uname",
];
/// When all files of a guest were changed last, since 1970.
const TIME: Duration = Duration::from_secs(1_700_000_000);
/// Directories of a guest's root.
const DIRECTORIES: &[&str] = &[
    "usr/bin",
    "usr/sbin",
    "usr/lib",
    "usr/lib64",
    "etc",
    "proc",
    "sys",
    "dev",
    "run",
    "tmp",
    "var/tmp",
    "modules",
    "root",
    "mnt",
];

/// A directory that becomes a guest's root.
#[derive(Debug)]
pub struct Image {
    dir: tempfile::TempDir,
    libraries: BTreeSet<PathBuf>,
}

impl Image {
    /// A root with a shell, the kernel's modules and an init that runs /run.sh.
    ///
    /// # Errors
    /// When something of it cannot be copied.
    pub fn new(kernel: &Kernel) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("gantry-vm-").tempdir()?;
        let mut image = Self { dir, libraries: BTreeSet::new() };
        for name in DIRECTORIES {
            fs::create_dir_all(image.root().join(name))?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), image.root().join(name))?;
        }
        image.write("init", INIT)?;
        image.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")?;
        image.write("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
        image.program("busybox")?;
        for applet in APPLETS {
            symlink("busybox", image.root().join("usr/bin").join(applet))?;
        }
        image.modules(kernel)?;
        Ok(image)
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Adds an executable text file.
    ///
    /// # Errors
    /// Those of writing it.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.root().join(name);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&path, text).with_context(|| format!("write {name}"))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    }

    /// Adds a program that is installed here.
    ///
    /// # Errors
    /// When it is not, or cannot be copied.
    pub fn program(&mut self, name: &str) -> Result<()> {
        let path = find(name)?;
        let to = path.strip_prefix("/")?.to_path_buf();
        let to = if to.starts_with("usr") { to } else { Path::new("usr").join(to) };
        self.binary(&path, to.to_str().context("a name in UTF-8")?)
    }

    /// Adds a binary under a name, without its debugging information.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn binary(&mut self, from: &Path, name: &str) -> Result<()> {
        let to = self.root().join(name);
        copy(from, &to)?;
        let stripped = Command::new("strip").arg("--strip-debug").arg(&to).output()?;
        ensure!(stripped.status.success(), "strip {name}: {stripped:?}");
        // A static program has none, and ldd says so by failing.
        self.libraries.extend(needed(from).unwrap_or_default());
        Ok(())
    }

    /// Adds a directory tree of this machine under the same name, but for entries called like one of `without`.
    ///
    /// # Errors
    /// When something cannot be copied.
    pub fn tree(&mut self, dir: &Path, without: &[&str]) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| without.iter().any(|other| name == *other)) {
                continue;
            }
            if path.is_dir() {
                self.tree(&path, without)?;
                continue;
            }
            copy(&path, &self.root().join(path.strip_prefix("/")?))?;
            if path.extension().is_some_and(|extension| extension == "so") {
                self.libraries.extend(needed(&path)?);
            }
        }
        Ok(())
    }

    /// Adds python3 with its library, without modules called like one of `without`.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn python(&mut self, without: &[&str]) -> Result<()> {
        self.program("python3")?;
        let version = fs::canonicalize(find("python3")?)?;
        let version = version.file_name().context("the name of python3")?;
        self.tree(&Path::new("/usr/lib").join(version), without)
    }

    fn modules(&self, kernel: &Kernel) -> Result<()> {
        let mut files = Vec::new();
        walk(&kernel.modules.join("kernel"), &mut files)?;
        for (index, module) in MODULES.iter().enumerate() {
            // A module's file is called with either sign.
            let same = |path: &&PathBuf| {
                let name = path.file_name().map(|name| name.to_string_lossy().replace('-', "_"));
                name.is_some_and(|name| name == format!("{module}.ko") || name == format!("{module}.ko.xz"))
            };
            let Some(path) = files.iter().find(same) else { continue };
            let to = self.root().join(format!("modules/{index:03}-{module}.ko"));
            if path.extension().is_some_and(|extension| extension == "xz") {
                let out = Command::new("xz").arg("-dc").arg(path).stdout(fs::File::create(&to)?).status()?;
                ensure!(out.success(), "unpack {}", path.display());
            } else {
                copy(path, &to)?;
            }
        }
        Ok(())
    }

    /// Packs it.
    ///
    /// # Errors
    /// When a library is missing or cpio(1) fails.
    pub fn pack(&mut self, to: &Path) -> Result<()> {
        for library in std::mem::take(&mut self.libraries) {
            let name = library.strip_prefix("/")?;
            let name = if name.starts_with("usr") { name.to_path_buf() } else { Path::new("usr").join(name) };
            copy(&library, &self.root().join(name))?;
        }
        // A mapped file must be the same in another guest, its time included.
        let mut files = Vec::new();
        walk(self.root(), &mut files)?;
        for path in files.iter().filter(|path| !path.is_symlink()) {
            fs::File::options().write(true).open(path)?.set_modified(UNIX_EPOCH + TIME)?;
        }
        let mut names = Vec::new();
        walk_names(self.root(), Path::new(""), &mut names)?;
        let mut pack = Command::new("cpio")
            .args(["--quiet", "-o", "-H", "newc"])
            .current_dir(self.root())
            .stdin(Stdio::piped())
            .stdout(fs::File::create(to)?)
            .spawn()
            .context("cpio")?;
        let list = names.join("\n");
        std::io::Write::write_all(&mut pack.stdin.take().context("its standard input")?, list.as_bytes())?;
        ensure!(pack.wait()?.success(), "cpio failed");
        Ok(())
    }
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() { walk(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

fn walk_names(root: &Path, dir: &Path, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(root.join(dir))? {
        let entry = entry?;
        let name = dir.join(entry.file_name());
        names.push(name.to_str().context("a name in UTF-8")?.to_owned());
        if entry.file_type()?.is_dir() {
            walk_names(root, &name, names)?;
        }
    }
    Ok(())
}
