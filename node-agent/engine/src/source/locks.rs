//! File locks, as /proc/PID/fdinfo tells of them (proc_locks(5) has the form).

use std::collections::HashSet;

use image::files::{FileLock, LockKind};

use super::capture::table::Table;
use super::descriptor::{Class, Descriptor};
use super::findings::Findings;
use super::look::{Look, ProcessLook, tables};
use super::tree::Process;

/// One `lock:` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    kind: Kind,
    write: bool,
    /// The process that took it, as this process sees it; -1 for those of a description.
    pid: i32,
    start: i64,
    length: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Flock,
    Posix,
    Ofd,
}

/// `1: POSIX  ADVISORY  WRITE 19467 fe:00:10010651 0 EOF`; `None` for leases and what is not known.
fn parse(line: &str) -> Option<Line> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let kind = match words.next()? {
        "FLOCK" => Kind::Flock,
        "POSIX" => Kind::Posix,
        "OFDLCK" => Kind::Ofd,
        _ => return None,
    };
    if words.next()? != "ADVISORY" {
        return None;
    }
    let write = match words.next()? {
        "WRITE" => true,
        "READ" => false,
        _ => return None,
    };
    let pid = words.next()?.parse().ok()?;
    let start: i64 = words.nth(1)?.parse().ok()?;
    let length = match words.next()? {
        "EOF" => 0,
        end => end.parse::<i64>().ok()?.checked_sub(start)?.checked_add(1)?,
    };
    Some(Line { kind, write, pid, start, length })
}

/// Refuses what is not carried.
pub(crate) fn check(process: &Process, descriptor: &Descriptor, findings: &mut Findings) {
    if matches!(descriptor.class, Class::Refused) {
        return;
    }
    let file = matches!(descriptor.class, Class::File { .. });
    for line in descriptor.info.locks.iter().filter(|line| !file || parse(line).is_none()) {
        findings.fd(
            process.inner,
            descriptor.fd,
            format!("file lock or lease ({line}): only locks of files and directories are carried"),
            "have the program release the lock before the move",
        );
    }
}

/// Locks belong to a table. What a process took in one that it shared, and has ended or left it since, nobody can take
/// again for it.
pub(crate) fn check_takers(processes: &[ProcessLook], findings: &mut Findings) {
    for (found, own) in tables(processes) {
        let has_it = |taker: &ProcessLook| {
            let files = found.shared.files;
            taker.process.pid == found.process.pid
                || (files != 0 && taker.shared.files == files && own.task == found.process.pid)
        };
        for descriptor in own.descriptors.iter().filter(|descriptor| !descriptor.info.locks.is_empty()) {
            for line in descriptor.info.locks.iter().filter_map(|line| parse(line)) {
                let mut takers = processes.iter().filter(|taker| taker.process.pid == line.pid);
                if line.kind == Kind::Posix && !takers.any(has_it) {
                    findings.fd(
                        found.process.inner,
                        descriptor.fd,
                        "a file lock of a process which has ended, or has another descriptor table since",
                        "have the program release the lock before the move",
                    );
                }
            }
        }
    }
}

/// Every lock of the tree, each once.
pub(crate) fn capture(look: &Look, table: &Table) -> Vec<FileLock> {
    let mut locks = Vec::new();
    let mut seen = HashSet::new();
    for (found, own) in tables(&look.processes) {
        for descriptor in own.descriptors.iter().filter(|d| !d.info.locks.is_empty()) {
            let Some(file) = table.numbers.get(&(own.task, descriptor.fd)).copied() else {
                continue;
            };
            for line in descriptor.info.locks.iter().filter_map(|line| parse(line)) {
                // Those that were taken by others who share the table show with them.
                let kind = match line.kind {
                    Kind::Flock => LockKind::Flock,
                    Kind::Ofd => LockKind::Ofd,
                    Kind::Posix if line.pid == found.process.pid => LockKind::Posix(own.inner),
                    Kind::Posix => continue,
                };
                // All descriptors of the file show a process's lock; one way to the file is enough.
                let place = match kind {
                    LockKind::Posix(pid) => (u64::try_from(pid).unwrap_or(0), Some(descriptor.key)),
                    LockKind::Flock | LockKind::Ofd => (u64::from(file), None),
                };
                // The descriptor must be open for what it is to lock.
                let access = descriptor.info.flags & 3;
                let usable = !matches!(kind, LockKind::Posix(_)) || access != u32::from(!line.write);
                if usable && seen.insert((place, line.kind as u8, line.start, line.length)) {
                    locks.push(FileLock {
                        file,
                        kind,
                        write: line.write,
                        start: line.start,
                        length: line.length,
                    });
                }
            }
        }
    }
    // What is open in a message alone has locks as well.
    for open in table.open.iter().filter(|open| open.holder.0 == 0) {
        for line in open.info.locks.iter().filter_map(|line| parse(line)) {
            let kind = match line.kind {
                Kind::Flock => LockKind::Flock,
                Kind::Ofd => LockKind::Ofd,
                Kind::Posix => continue,
            };
            locks.push(FileLock {
                file: open.id,
                kind,
                write: line.write,
                start: line.start,
                length: line.length,
            });
        }
    }
    locks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_locks() {
        let line = parse("1: FLOCK  ADVISORY  WRITE 19467 fe:00:10010651 0 EOF").unwrap();
        assert_eq!(line, Line { kind: Kind::Flock, write: true, pid: 19467, start: 0, length: 0 });
        let line = parse("2: POSIX  ADVISORY  READ  7 fe:00:1 10 19").unwrap();
        assert_eq!((line.kind, line.write, line.start, line.length), (Kind::Posix, false, 10, 10));
        let line = parse("2: OFDLCK ADVISORY  WRITE -1 fe:00:1 5 5").unwrap();
        assert_eq!((line.kind, line.pid, line.length), (Kind::Ofd, -1, 1));
        assert_eq!(parse("1: LEASE  ACTIVE    READ  7 fe:00:1 0 EOF"), None);
        assert_eq!(parse(""), None);
    }
}
