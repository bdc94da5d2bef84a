//! Options of mounts and file systems: from mountinfo, and as fsconfig(2) takes them.

use sys::mount::attr;

use super::tree::FileSystem;

/// What of a file system's options can be set again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    /// As fsconfig(2) takes them.
    pub(super) options: Vec<String>,
    /// `ro`.
    pub(super) read_only: bool,
}

/// File systems that can be made again, with the options that may be given. An option that is not here is refused.
const KNOWN: &[(&str, &[&str])] = &[
    (
        "tmpfs",
        &[
            "size",
            "nr_blocks",
            "nr_inodes",
            "mode",
            "uid",
            "gid",
            "huge",
            "mpol",
            "inode32",
            "inode64",
            "noswap",
        ],
    ),
    ("proc", &["hidepid", "gid", "subset"]),
    ("sysfs", &[]),
    ("mqueue", &[]),
    ("devpts", &["gid", "uid", "mode", "ptmxmode", "max"]),
    ("cgroup2", &[]),
    ("cgroup", &CGROUP),
    ("overlay", &OVERLAY),
];

const CGROUP: [&str; 16] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "net_cls",
    "net_prio",
    "perf_event",
    "hugetlb",
    "rdma",
    "misc",
    "name",
    "none",
];

const OVERLAY: [&str; 13] = [
    "lowerdir",
    "lowerdir+",
    "datadir+",
    "upperdir",
    "workdir",
    "redirect_dir",
    "index",
    "metacopy",
    "xino",
    "uuid",
    "userxattr",
    "volatile",
    "default_permissions",
];

/// Shown by some types and of no use to a new mount.
const DROPPED: &[(&str, &[&str])] = &[
    ("cgroup", &["xattr", "clone_children", "cpuset_v2_mode", "noprefix", "release_agent"]),
    (
        "cgroup2",
        &[
            "nsdelegate",
            "favordynmods",
            "memory_localevents",
            "memory_recursiveprot",
            "memory_hugetlb_accounting",
            "pids_localevents",
        ],
    ),
];

fn row<'a>(table: &'a [(&str, &'a [&str])], fs_type: &str) -> Option<&'a [&'a str]> {
    table.iter().find(|(name, _)| *name == fs_type).map(|(_, options)| *options)
}

/// This type can be made again.
pub(super) fn is_known(fs_type: &str) -> bool {
    row(KNOWN, fs_type).is_some()
}

/// The name of an option `name=value`.
pub(super) fn name(option: &str) -> &str {
    option.split_once('=').map_or(option, |(name, _)| name)
}

/// Understands the options of a file system in mountinfo.
///
/// # Errors
/// The option that cannot be set again.
pub(super) fn of_file_system(fs_type: &str, text: &str) -> Result<Parsed, String> {
    let allowed = row(KNOWN, fs_type).unwrap_or_default();
    let dropped = row(DROPPED, fs_type).unwrap_or_default();
    let mut parsed = Parsed::default();
    for option in text.split(',').filter(|option| !option.is_empty()) {
        match option {
            "rw" => {}
            "ro" => parsed.read_only = true,
            "seclabel" => {}
            option if allowed.contains(&name(option)) => parsed.options.push(unescape(option)),
            option if dropped.contains(&name(option)) => {}
            other => return Err(other.to_owned()),
        }
    }
    if fs_type == "cgroup" && parsed.options.iter().any(|option| name(option) == "name") {
        parsed.options.push("none".to_owned());
    }
    Ok(parsed)
}

/// Refuses types and options that are not in the tables.
pub(super) fn check(fs_type: &str, options: &[String]) -> Result<(), String> {
    let allowed = row(KNOWN, fs_type).ok_or_else(|| format!("a file system of type {fs_type:?}"))?;
    match options.iter().find(|option| !allowed.contains(&name(option)) || option.contains('\0')) {
        Some(option) => Err(format!("the option {option:?} of {fs_type}")),
        None => Ok(()),
    }
}

/// Options that a file system takes when it is mounted already. Owner and mode of a tmpfs are those of its first mount.
const CHANGEABLE: &[(&str, &[&str])] = &[
    ("tmpfs", &["size", "nr_blocks", "nr_inodes", "huge", "mpol"]),
    ("proc", &["hidepid", "gid"]),
    ("devpts", &["gid", "mode", "ptmxmode", "max"]),
];

/// What to set so that options `before` become `now`.
///
/// # Errors
/// The option that cannot be changed.
pub(super) fn difference(fs_type: &str, before: &[String], now: &[String]) -> Result<Vec<String>, String> {
    let changeable = row(CHANGEABLE, fs_type).unwrap_or_default();
    let mut set: Vec<String> = now.iter().filter(|option| !before.contains(option)).cloned().collect();
    if let Some(fixed) = set.iter().find(|option| !changeable.contains(&name(option))) {
        return Err(fixed.clone());
    }
    for option in before.iter().filter(|option| !now.iter().any(|other| name(other) == name(option))) {
        match name(option) {
            // The default is not shown.
            "size" | "nr_blocks" => set.push("size=50%".to_owned()),
            "hidepid" => set.push("hidepid=0".to_owned()),
            _ => return Err(option.clone()),
        }
    }
    Ok(set)
}

/// What to set so that options of a file system become what they are now, and whether it is read-only.
///
/// # Errors
/// The option that cannot be changed.
pub(super) fn changed(fs_type: &str, before: &str, now: &str) -> Result<(Vec<String>, bool), String> {
    let before = of_file_system(fs_type, before)?;
    let now = of_file_system(fs_type, now)?;
    Ok((difference(fs_type, &before.options, &now.options)?, now.read_only))
}

/// Paths of the layers of an overlay.
pub(super) fn layers(fs: &FileSystem) -> impl Iterator<Item = &str> {
    let options = fs.options.iter().filter(|_| fs.fs_type == "overlay");
    options.filter_map(|option| option.split_once('=')).flat_map(|(name, value)| {
        let one = matches!(name, "lowerdir+" | "datadir+" | "upperdir" | "workdir").then_some(value);
        let many = (name == "lowerdir").then(|| value.split(':').filter(|path| !path.is_empty()));
        one.into_iter().chain(many.into_iter().flatten())
    })
}

/// The kernel writes blanks, commas and so on as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The flags of a mount as [`attr`] bits.
///
/// # Errors
/// The flag that cannot be set again.
pub(super) fn of_mount(text: &str) -> Result<u64, String> {
    let (mut bits, mut atime) = (0, attr::STRICTATIME);
    for option in text.split(',') {
        bits |= match option {
            "rw" => 0,
            "ro" => attr::RDONLY,
            "nosuid" => attr::NOSUID,
            "nodev" => attr::NODEV,
            "noexec" => attr::NOEXEC,
            "nodiratime" => attr::NODIRATIME,
            "nosymfollow" => attr::NOSYMFOLLOW,
            "relatime" | "noatime" => {
                atime = if option == "noatime" { attr::NOATIME } else { 0 };
                0
            }
            other => return Err(other.to_owned()),
        };
    }
    Ok(bits | atime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_mounts() {
        assert_eq!(of_mount("rw,relatime").unwrap(), 0);
        assert_eq!(of_mount("rw").unwrap(), attr::STRICTATIME);
        let bits = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC | attr::NOATIME;
        assert_eq!(of_mount("ro,nosuid,nodev,noexec,noatime").unwrap(), bits);
        assert_eq!(of_mount("rw,relatime,idmapped").unwrap_err(), "idmapped");
    }

    #[test]
    fn options_of_file_systems() {
        let tmpfs = of_file_system("tmpfs", "rw,size=64k,nr_inodes=100,mode=700,uid=5,inode64").unwrap();
        assert_eq!(tmpfs.options, ["size=64k", "nr_inodes=100", "mode=700", "uid=5", "inode64"]);
        assert!(of_file_system("proc", "ro,hidepid=invisible").unwrap().read_only);
        assert_eq!(of_file_system("cgroup2", "rw,nsdelegate").unwrap().options, Vec::<String>::new());
        let named = of_file_system("cgroup", "rw,xattr,name=systemd").unwrap();
        assert_eq!(named.options, ["name=systemd", "none"]);
        let overlay = of_file_system("overlay", "rw,lowerdir=/a\\054b:/c,upperdir=/u,workdir=/w").unwrap();
        assert_eq!(overlay.options[0], "lowerdir=/a,b:/c");
        assert_eq!(of_file_system("tmpfs", "rw,usrquota").unwrap_err(), "usrquota");
        assert!(check("ext4", &[]).is_err());
        assert!(check("tmpfs", &["size=1".to_owned()]).is_ok());
        assert!(check("tmpfs", &["errors=panic".to_owned()]).is_err());
    }
}
