//! Files that processes may have written to through memory, which raises no event and may leave the times of
//! the file as they were.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use rustix::fs::{AtFlags, Dir, FileType, statat};

use crate::files::Suspects;

/// Links in /proc say by their modes how the file was opened.
const READ: u32 = 0o400;
const WRITE: u32 = 0o200;

/// The files of processes that stand still. What has ended meanwhile has nothing.
pub(super) fn written(processes: &[i32]) -> Suspects {
    let mut suspects = Suspects::default();
    for pid in processes {
        mapped(*pid, &mut suspects);
        open(*pid, &mut suspects);
    }
    suspects
}

/// Pieces of files that are mapped shared, from a descriptor that could write.
fn mapped(pid: i32, suspects: &mut Suspects) {
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    for line in maps.split(|byte| *byte == b'\n') {
        let Some((range, offset)) = shared(line) else { continue };
        let link = format!("/proc/{pid}/map_files/{range}");
        let mode = fs::symlink_metadata(&link).map_or(READ | WRITE, |link| link.permissions().mode());
        let Some(length) = length(range).filter(|_| mode & WRITE != 0) else { continue };
        if let Some(ino) = regular(&link) {
            suspects.mapped.entry(ino).or_default().push((offset, offset.saturating_add(length)));
        }
    }
}

/// The range of addresses and the offset in the file, of a line of /proc/PID/maps about a shared mapping of a file.
fn shared(line: &[u8]) -> Option<(&str, u64)> {
    let mut fields = line.split(|byte| *byte == b' ').map(|field| std::str::from_utf8(field).ok());
    let range = fields.next()??;
    let permissions = fields.next()??;
    let offset = u64::from_str_radix(fields.next()??, 16).ok()?;
    let inode = fields.nth(1)??;
    (permissions.ends_with('s') && inode != "0").then_some((range, offset))
}

fn length(range: &str) -> Option<u64> {
    let (start, end) = range.split_once('-')?;
    u64::from_str_radix(end, 16).ok()?.checked_sub(u64::from_str_radix(start, 16).ok()?)
}

/// Files that are open for writing. One that can be read through the same descriptor can have been mapped, written
/// and unmapped; any other can be written to by calls alone.
fn open(pid: i32, suspects: &mut Suspects) {
    let Ok(dir) = File::open(format!("/proc/{pid}/fd")) else { return };
    let Ok(links) = Dir::read_from(&dir) else { return };
    for link in links.flatten() {
        // Nearly all may be sockets and pipes, which are no files.
        let Ok(file) = statat(&dir, link.file_name(), AtFlags::empty()) else { continue };
        if FileType::from_raw_mode(file.st_mode) != FileType::RegularFile {
            continue;
        }
        let mode = statat(&dir, link.file_name(), AtFlags::SYMLINK_NOFOLLOW);
        let mode = mode.map_or(READ | WRITE, |link| link.st_mode);
        if mode & WRITE == 0 {
            continue;
        }
        if mode & READ == 0 {
            suspects.open.insert(file.st_ino);
        } else {
            suspects.mapped.entry(file.st_ino).or_default().push((0, u64::MAX));
        }
    }
}

/// The inode number of the regular file behind a link of /proc.
fn regular(link: &str) -> Option<u64> {
    fs::metadata(link).ok().filter(fs::Metadata::is_file).map(|file| file.ino())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn lines_of_maps_are_understood() {
        let line = b"7f00-8f00 rw-s 00001000 fe:00 42                    /a file";
        assert_eq!(shared(line), Some(("7f00-8f00", 0x1000)));
        assert_eq!(length("7f00-8f00"), Some(0x1000));
        for other in [&b"7f00-8f00 rw-p 00001000 fe:00 42 /a"[..], b"7f00-8f00 rw-s 0 00:00 0", b"", b"x"] {
            assert_eq!(shared(other), None);
        }
    }

    #[test]
    fn descriptors_are_told_apart_by_how_they_were_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut both = File::options().read(true).write(true).create_new(true).open(path("both")).unwrap();
        both.write_all(b"x").unwrap();
        let written = File::create(path("written")).unwrap();
        fs::write(path("read"), b"x").unwrap();
        let read = File::open(path("read")).unwrap();
        let ino = |file: &File| file.metadata().unwrap().ino();
        let mut found = Suspects::default();
        open(std::process::id().try_into().unwrap(), &mut found);
        assert_eq!(found.mapped.get(&ino(&both)), Some(&vec![(0, u64::MAX)]));
        assert!(found.open.contains(&ino(&written)) && !found.mapped.contains_key(&ino(&written)));
        assert!(!found.open.contains(&ino(&read)) && !found.mapped.contains_key(&ino(&read)));
    }
}
