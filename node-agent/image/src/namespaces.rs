//! Namespaces that processes of a container have beside its own; see namespaces(7).

use serde::{Deserialize, Serialize};

use crate::Pid;

/// Which namespaces a process is in; 0 stands for the container's own. The numbers name the same namespace in all
/// processes, and stay the same over the rounds of one migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Nested {
    /// Host and domain name, see uts_namespaces(7).
    pub uts: u64,
    /// System V IPC and POSIX message queues, see ipc_namespaces(7).
    pub ipc: u64,
    /// Mounts, see mount_namespaces(7). They travel with those of the container.
    pub mnt: u64,
    /// The pid namespace of its future children, see pid_namespaces(7); 0 when it is its own, [`Nested::NEW`] when its next
    /// child begins it.
    pub pid_for_children: u64,
}

/// The numbers of a process in a pid namespace below the container's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Level {
    /// Which namespace, as in [`Nested`].
    pub namespace: u64,
    /// Its pid there.
    pub pid: Pid,
    /// Its process group there; 0 when that has no number there.
    pub pgid: Pid,
    /// Its session there; 0 when that has no number there.
    pub sid: Pid,
}

impl Nested {
    /// A namespace that nobody is in yet.
    pub const NEW: u64 = u64::MAX;

    /// Whether all of them are the container's.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A namespace that is not the container's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its number in [`Nested`].
    pub id: u64,
    /// What it holds.
    pub contents: Contents,
}

/// What a namespace holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contents {
    /// Names, see uname(2).
    Uts {
        /// sethostname(2).
        #[serde(with = "serde_bytes")]
        host: Vec<u8>,
        /// setdomainname(2).
        #[serde(with = "serde_bytes")]
        domain: Vec<u8>,
    },
    /// An IPC namespace without objects.
    Ipc {
        /// Its files below /proc/sys, each with its text.
        settings: Vec<(String, String)>,
    },
}

/// The path of a file on a mount of a mount namespace below the container's: `mnt:[NUMBER]/path`, with its number in
/// [`Nested`]. Paths of the container's own namespace are written as they are; they begin with a slash.
#[must_use]
pub fn path_in(mnt: u64, path: &[u8]) -> Vec<u8> {
    if mnt == 0 { path.to_vec() } else { [format!("mnt:[{mnt}]").as_bytes(), path].concat() }
}

/// The namespace and the path there of what [`path_in`] wrote.
#[must_use]
pub fn split_path(path: &[u8]) -> (u64, &[u8]) {
    let split = || {
        let rest = path.strip_prefix(b"mnt:[")?;
        let end = rest.iter().position(|byte| *byte == b']')?;
        let number = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
        Some((number, &rest[end + 1..]))
    };
    split().unwrap_or((0, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_where_they_are() {
        assert_eq!(path_in(0, b"/a"), b"/a");
        let nested = path_in(4_026_532_001, b"/a/b");
        assert_eq!(nested, b"mnt:[4026532001]/a/b");
        assert_eq!(split_path(&nested), (4_026_532_001, &b"/a/b"[..]));
        assert_eq!(split_path(b"mnt:[7]"), (7, &b""[..]));
        for plain in [&b"/mnt:[7]/a"[..], b"mnt:[x]/a", b"mnt:[7", b"", b"a"] {
            assert_eq!(split_path(plain), (0, plain));
        }
    }
}
