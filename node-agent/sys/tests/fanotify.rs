//! Changes of real file systems, as fanotify(7) reports them. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sys::fanotify::{self, Event, Group, Handle, fs_id, handle_of};

/// A directory of the test, removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(place: &str, test: &str) -> Self {
        let path = Path::new(place).join(format!("sys-fanotify-{test}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn same(handle: Option<Handle<'_>>, dir: &File, name: &str) -> bool {
    let fs = fs_id(dir).unwrap();
    handle.is_some_and(|seen| handle_of(dir, OsStr::new(name), fs, |own| own == seen).unwrap())
}

/// What happened in `dir`: names with what, `.` for itself.
fn changes(group: &Group, dir: &File) -> BTreeSet<(String, u64)> {
    let mut buffer = vec![0; 64 * 1024];
    let mut found = BTreeSet::new();
    loop {
        let length = group.read(&mut buffer).unwrap();
        if length == 0 {
            return found;
        }
        for event in fanotify::events(&buffer[..length]) {
            assert_eq!(event.mask & fanotify::OVERFLOW, 0);
            if same(event.dir, dir, "") {
                for bit in [
                    fanotify::MODIFY,
                    fanotify::ATTRIB,
                    fanotify::CLOSE_WRITE,
                    fanotify::CREATE,
                    fanotify::DELETE,
                    fanotify::MOVED_TO,
                ] {
                    if event.mask & bit != 0 {
                        found.insert((String::from_utf8_lossy(event.name).into_owned(), bit));
                    }
                }
            }
        }
    }
}

#[test]
fn changes_are_reported_by_directory_and_name() {
    for place in ["/tmp", "/dev/shm"] {
        let own = Dir::new(place, "names");
        fs::create_dir(own.0.join("d")).unwrap();
        fs::write(own.0.join("d/old"), b"x").unwrap();
        let dir = File::open(own.0.join("d")).unwrap();
        let group = Group::new().unwrap();
        group.mark_file_system(&dir).unwrap();
        let expect = |what: &[(&str, u64)]| {
            let seen = changes(&group, &dir);
            for (name, bit) in what {
                assert!(
                    seen.contains(&((*name).to_owned(), *bit)),
                    "{place}: no {bit:#x} of {name}: {seen:?}"
                );
            }
        };
        fs::write(own.0.join("d/new"), b"y").unwrap();
        expect(&[("new", fanotify::CREATE), ("new", fanotify::MODIFY), ("new", fanotify::CLOSE_WRITE)]);
        fs::set_permissions(own.0.join("d/old"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(own.0.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
        expect(&[("old", fanotify::ATTRIB), (".", fanotify::ATTRIB)]);
        fs::rename(own.0.join("d/old"), own.0.join("d/moved")).unwrap();
        fs::remove_file(own.0.join("d/new")).unwrap();
        expect(&[("moved", fanotify::MOVED_TO), ("new", fanotify::DELETE)]);
    }
}

#[test]
fn a_file_written_through_a_name_elsewhere_is_named_by_its_handle() {
    let own = Dir::new("/tmp", "links");
    fs::create_dir_all(own.0.join("in")).unwrap();
    fs::create_dir_all(own.0.join("out")).unwrap();
    fs::write(own.0.join("in/f"), b"x").unwrap();
    fs::hard_link(own.0.join("in/f"), own.0.join("out/g")).unwrap();
    let dir = File::open(own.0.join("in")).unwrap();
    let group = Group::new().unwrap();
    group.mark_file_system(&dir).unwrap();
    fs::write(own.0.join("out/g"), b"longer").unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let mut seen = false;
    loop {
        let length = group.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        let modified = |event: Event<'_>| event.mask & fanotify::MODIFY != 0 && same(event.object, &dir, "f");
        seen |= fanotify::events(&buffer[..length]).any(modified);
    }
    assert!(seen, "the file is the same one, whatever its name");
}

#[test]
fn changes_through_another_mount_are_seen() {
    let own = Dir::new("/tmp", "mounts");
    fs::create_dir_all(own.0.join("real")).unwrap();
    fs::create_dir_all(own.0.join("elsewhere")).unwrap();
    let dir = File::open(own.0.join("real")).unwrap();
    let group = Group::new().unwrap();
    group.mark_file_system(&dir).unwrap();
    // As a container has it: a mount that exists in another mount namespace alone.
    let script = "mount --bind real elsewhere && echo x > elsewhere/written";
    let mut command = Command::new("unshare");
    let status = command.args(["-m", "sh", "-c", script]).current_dir(&own.0).status().unwrap();
    assert!(status.success());
    let seen = changes(&group, &dir);
    assert!(seen.contains(&("written".to_owned(), fanotify::MODIFY)), "{seen:?}");
}

#[test]
fn damaged_events_count_as_lost() {
    for bytes in [&[1_u8, 2, 3][..], &[200, 0, 0, 0], &[24; 24], &[0; 48]] {
        assert!(fanotify::events(bytes).any(|event| event.mask & fanotify::OVERFLOW != 0), "{bytes:?}");
    }
}
