//! /proc/PID/mountinfo.

use super::{ProcError, lines, number, text, words};

/// One mount; see proc_pid_mountinfo(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Mount id, as fdinfo's `mnt_id` names it.
    pub id: i32,
    /// Id of the mount below.
    pub parent: i32,
    /// Major and minor device number.
    pub device: (u32, u32),
    /// Which directory of the file system is mounted.
    pub root: Vec<u8>,
    /// Where, relative to the process's root.
    pub point: Vec<u8>,
    /// Per-mount options.
    pub options: String,
    /// Its peer group, when it is shared.
    pub shared: Option<u32>,
    /// The peer group that it receives mounts from, when it is a slave.
    pub master: Option<u32>,
    /// It cannot be bound.
    pub unbindable: bool,
    /// Type of the file system.
    pub fs_type: String,
    /// What is mounted.
    pub source: Vec<u8>,
    /// Options of the file system.
    pub super_options: String,
}

/// Parses a mountinfo file.
///
/// # Errors
/// [`ProcError::Parse`] with the line.
pub fn parse(bytes: &[u8]) -> Result<Vec<Mount>, ProcError> {
    lines(bytes)
        .map(|line| parse_line(line).ok_or_else(|| ProcError::parse("mountinfo", text(line))))
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = words(line);
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = fields.next()?;
    let colon = device.iter().position(|byte| *byte == b':')?;
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let options = text(fields.next()?);
    let (mut shared, mut master, mut unbindable) = (None, None, false);
    loop {
        let field = fields.next()?;
        if field == b"-" {
            break;
        }
        if let Some(group) = field.strip_prefix(b"shared:") {
            shared = Some(number(group)?);
        } else if let Some(group) = field.strip_prefix(b"master:") {
            master = Some(number(group)?);
        } else if field == b"unbindable" {
            unbindable = true;
        }
    }
    Some(Mount {
        id,
        parent,
        device: (number(&device[..colon])?, number(&device[colon + 1..])?),
        root,
        point,
        options,
        shared,
        master,
        unbindable,
        fs_type: text(fields.next()?),
        source: fields.next().map(unescape).unwrap_or_default(),
        super_options: fields.next().map(text).unwrap_or_default(),
    })
}

/// Blank, tab, line feed, backslash and `#` are written as three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'\\'
            && let Some(byte) = tail.get(..3).and_then(super::octal::<u8>)
        {
            out.push(byte);
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

/// Reads /proc/PID/mountinfo.
///
/// # Errors
/// [`ProcError`].
pub fn read(pid: i32) -> Result<Vec<Mount>, ProcError> {
    parse(&super::read(pid, "mountinfo")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_optional_fields_and_escapes() {
        let mounts = parse(
            b"28 27 0:25 / /mnt/a\\040b\\134 ro,nosuid shared:1 master:2 - tmpfs none ro,size=4k,mode=755\n\
              27 1 254:0 /sub / rw,relatime - ext4 /dev/vda rw\n",
        )
        .unwrap();
        assert_eq!(mounts[0].point, b"/mnt/a b\\");
        assert_eq!((mounts[0].id, mounts[0].fs_type.as_str()), (28, "tmpfs"));
        assert_eq!((mounts[1].device, mounts[1].root.as_slice()), ((254, 0), b"/sub".as_slice()));
        assert_eq!((mounts[0].shared, mounts[0].master, mounts[0].unbindable), (Some(1), Some(2), false));
        assert_eq!((mounts[1].shared, mounts[1].master), (None, None));
        assert!(parse(b"1 2 3\n").is_err());
    }

    #[test]
    fn reads_this_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(read(pid).unwrap().iter().any(|mount| mount.point == b"/proc"));
    }
}
