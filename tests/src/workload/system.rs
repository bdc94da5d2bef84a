//! A system container: busybox's init with Debian's sshd and cron, getty, syslogd and a shell on the console, in a root
//! directory of its own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// The interactive session's checker.
pub const SESSION_PROGRAM: &str = include_str!("session.py");

/// What is installed for it on this machine.
pub const PROGRAMS: &[&str] = &["busybox", "sshd", "cron", "ssh", "ssh-keygen", "python3"];

const DIRECTORIES: [&str; 16] = [
    "bin",
    "sbin",
    "usr/sbin",
    "etc/ssh",
    "etc/pam.d",
    "root/.ssh",
    "var/log",
    "var/spool/cron/crontabs",
    "run/sshd",
    "tmp",
    "proc",
    "sys",
    "dev",
    "lib64",
    "lib/x86_64-linux-gnu/security",
    "usr/lib",
];

const APPLETS: [&str; 14] = [
    "bin/sh",
    "bin/cat",
    "bin/echo",
    "bin/grep",
    "bin/ls",
    "bin/pidof",
    "bin/ps",
    "bin/sleep",
    "bin/stty",
    "bin/tty",
    "sbin/init",
    "sbin/getty",
    "sbin/syslogd",
    "bin/login",
];

const FILES: [(&str, &str); 10] = [
    (
        "etc/inittab",
        "::sysinit:/bin/echo the system starts\n\
         console::askfirst:-/bin/sh\n\
         tty1::respawn:/sbin/getty 38400 tty1 linux\n\
         ::respawn:/sbin/syslogd -n -O /var/log/messages\n\
         ::respawn:/usr/sbin/cron -f\n\
         ::respawn:/usr/sbin/sshd -D\n",
    ),
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534:sshd:/run/sshd:/bin/false\n"),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ("etc/shadow", "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\n"),
    (
        "etc/ssh/sshd_config",
        "HostKey /etc/ssh/host_key\nPermitRootLogin yes\nUsePAM no\nStrictModes no\nPrintMotd no\nPrintLastLog no\n\
         UseDNS no\n",
    ),
    (
        "etc/pam.d/cron",
        "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n",
    ),
    (
        "etc/pam.d/other",
        "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n",
    ),
    ("var/spool/cron/crontabs/root", "* * * * * echo tick >> /var/log/ticks\n"),
    ("root/.profile", "export PS1='# '\n"),
];

/// Makes the bundle's root directory and configuration out of one that `migrate dev bundle` made; answers the private
/// key for root's login.
///
/// # Errors
/// When a program or library of this machine cannot be copied.
pub fn furnish(bundle: &Path) -> Result<PathBuf> {
    let root = bundle.join("rootfs");
    fs::remove_dir_all(&root)?;
    for name in DIRECTORIES {
        fs::create_dir_all(root.join(name)).with_context(|| format!("create {name}"))?;
    }
    symlink("../run", root.join("var/run"))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    copy(&find("busybox")?, &root.join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("/bin/busybox", root.join(applet))?;
    }
    let mut libraries = BTreeSet::from([PathBuf::from("/lib/x86_64-linux-gnu/security/pam_permit.so")]);
    for daemon in ["sshd", "cron"] {
        let program = find(daemon)?;
        copy(&program, &root.join("usr/sbin").join(daemon))?;
        libraries.extend(needed(&program)?);
    }
    for library in libraries {
        copy(&library, &root.join(library.strip_prefix("/")?))?;
    }
    for (name, content) in FILES {
        fs::write(root.join(name), content).with_context(|| format!("write {name}"))?;
    }
    for secret in ["etc/shadow", "var/spool/cron/crontabs/root"] {
        fs::set_permissions(root.join(secret), fs::Permissions::from_mode(0o600))?;
    }
    key(&root.join("etc/ssh/host_key"))?;
    let login = bundle.join("login_key");
    key(&login)?;
    fs::copy(login.with_extension("pub"), root.join("root/.ssh/authorized_keys"))?;
    configure(&bundle.join("config.json"))?;
    Ok(login)
}

/// Everything is its own: no bind mounts, a console, one more terminal.
fn configure(path: &Path) -> Result<()> {
    let mut config: Value = serde_json::from_slice(&fs::read(path)?)?;
    config["process"]["args"] = json!(["/sbin/init"]);
    config["process"]["terminal"] = json!(true);
    config["process"]["consoleSize"] = json!({"height": 25, "width": 90});
    config["annotations"] = json!({"dev.gantry.ttys": "1"});
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["type"] != "bind");
    }
    Ok(fs::write(path, format!("{config:#}\n"))?)
}

fn key(path: &Path) -> Result<()> {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(path)
        .status()
        .context("ssh-keygen")?;
    ensure!(status.success(), "ssh-keygen for {}", path.display());
    Ok(())
}

pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::copy(from, to).with_context(|| format!("copy {}", from.display())).map(|_| ())
}

pub(crate) fn find(program: &str) -> Result<PathBuf> {
    let dirs = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let found = dirs.iter().map(|dir| dir.join(program)).find(|path| path.exists());
    found.with_context(|| format!("{program} is not installed"))
}

/// The libraries that a program needs, and the loader.
pub(crate) fn needed(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
