//! Mount options of an OCI configuration, see mount(8).

use rustix::mount::{MountFlags, MountPropagationFlags};

/// The parts of a list of options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// Flags of mount(2).
    pub(super) flags: MountFlags,
    /// Set when `bind` or `rbind` is among them: recursive?
    pub(super) bind: Option<bool>,
    /// Changes of propagation, in order.
    pub(super) propagation: Vec<MountPropagationFlags>,
    /// The rest: data for the file system.
    pub(super) data: String,
}

/// Sorts options. What is no flag is data for the file system, which refuses what it does not know.
pub(super) fn parse(options: &[String]) -> Options {
    let mut parsed =
        Options { flags: MountFlags::empty(), bind: None, propagation: Vec::new(), data: String::new() };
    for option in options {
        let recursive = MountPropagationFlags::REC;
        match option.as_str() {
            "defaults" | "rw" | "suid" | "dev" | "exec" | "async" | "atime" | "diratime" | "norelatime"
            | "nostrictatime" | "nomand" | "loud" | "nolazytime" => {
                if let Some(flag) = flag(&option_off(option)) {
                    parsed.flags -= flag;
                }
            }
            "bind" => parsed.bind = Some(false),
            "rbind" => parsed.bind = Some(true),
            "private" => parsed.propagation.push(MountPropagationFlags::PRIVATE),
            "rprivate" => parsed.propagation.push(MountPropagationFlags::PRIVATE | recursive),
            "shared" => parsed.propagation.push(MountPropagationFlags::SHARED),
            "rshared" => parsed.propagation.push(MountPropagationFlags::SHARED | recursive),
            "slave" => parsed.propagation.push(MountPropagationFlags::DOWNSTREAM),
            "rslave" => parsed.propagation.push(MountPropagationFlags::DOWNSTREAM | recursive),
            "unbindable" => parsed.propagation.push(MountPropagationFlags::UNBINDABLE),
            "runbindable" => parsed.propagation.push(MountPropagationFlags::UNBINDABLE | recursive),
            other => match flag(other) {
                Some(flag) => parsed.flags |= flag,
                None => {
                    if !parsed.data.is_empty() {
                        parsed.data.push(',');
                    }
                    parsed.data.push_str(other);
                }
            },
        }
    }
    parsed
}

/// The option that `off` switches off.
fn option_off(off: &str) -> String {
    match off {
        "rw" => "ro".to_owned(),
        "async" => "sync".to_owned(),
        "suid" | "dev" | "exec" | "atime" | "diratime" => format!("no{off}"),
        "norelatime" | "nostrictatime" | "nolazytime" => off[2..].to_owned(),
        "loud" => "silent".to_owned(),
        _ => String::new(),
    }
}

fn flag(option: &str) -> Option<MountFlags> {
    Some(match option {
        "ro" => MountFlags::RDONLY,
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "sync" => MountFlags::SYNCHRONOUS,
        "dirsync" => MountFlags::DIRSYNC,
        "noatime" => MountFlags::NOATIME,
        "nodiratime" => MountFlags::NODIRATIME,
        "relatime" => MountFlags::RELATIME,
        "strictatime" => MountFlags::STRICTATIME,
        "lazytime" => MountFlags::LAZYTIME,
        "silent" => MountFlags::SILENT,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Options {
        parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_data_and_binds_are_told_apart() {
        let tmpfs = of(&["nosuid", "strictatime", "mode=755", "size=65536k"]);
        assert_eq!(tmpfs.flags, MountFlags::NOSUID | MountFlags::STRICTATIME);
        assert_eq!(tmpfs.data, "mode=755,size=65536k");
        let bind = of(&["rbind", "ro", "rslave"]);
        assert_eq!(bind.bind, Some(true));
        assert_eq!(bind.flags, MountFlags::RDONLY);
        assert_eq!(bind.propagation, [MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC]);
        assert_eq!(of(&["ro", "rw"]).flags, MountFlags::empty(), "the last one wins");
    }
}
