//! Random trees and random changes between rounds: after each one the target is equal, whichever way changes are
//! found.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use node_agent::files::{Suspects, Tracking};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags, fallocate,
    lremovexattr, lsetxattr, mknodat, renameat_with, utimensat,
};

use crate::support::{Pair, assert_same, tree};

/// Of open(2), on x86-64.
const O_NONBLOCK: i32 = 0o4000;

/// Small random numbers from a seed that a failure names.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % 0xffff_fffb).unwrap() % limit
    }

    fn path(&mut self, root: &Path) -> PathBuf {
        let names = [OsString::from("a"), OsString::from("b"), OsString::from_vec(b"\xff\xfe c".to_vec())];
        let mut path = root.to_owned();
        (0..=self.below(3)).for_each(|_| path.push(&names[self.below(3)]));
        path
    }
}

/// `user`, `trusted`, a capability and access control lists, in the kernel's own byte forms.
fn xattr(number: usize) -> (&'static str, Vec<u8>) {
    let list: Vec<u8> =
        [(1, 7, u32::MAX), (2, 6, 1234), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 4, u32::MAX)]
            .iter()
            .flat_map(|(tag, permissions, id): &(u16, u16, u32)| {
                [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
            })
            .collect();
    let list = [&2_u32.to_le_bytes()[..], &list].concat();
    match number {
        0 => ("user.key", b"value".to_vec()),
        1 => ("user.key", Vec::new()),
        2 => ("trusted.key", vec![0, 255]),
        3 => ("security.capability", [0x0200_0000_u32, 1 << 10, 0, 0, 0].map(u32::to_le_bytes).concat()),
        4 => ("system.posix_acl_access", list),
        _ => ("system.posix_acl_default", list),
    }
}

/// One change. Many of them fail, which is as good.
fn change(dice: &mut Dice, root: &Path) -> String {
    let (path, other) = (dice.path(root), dice.path(root));
    let what = dice.below(20);
    let number = dice.below(6);
    let offset = (dice.below(600) * 4096) as u64;
    // Fifos must not wait for a partner.
    let options = |options: &mut fs::OpenOptions| options.write(true).custom_flags(O_NONBLOCK).open(&path);
    let open = || options(&mut File::options());
    let result: std::io::Result<()> = match what {
        0 | 1 => {
            let content = vec![u8::try_from(dice.below(3)).unwrap(); 5000 * number];
            options(File::options().create(true).truncate(true)).and_then(|mut file| file.write_all(&content))
        }
        2 => fs::create_dir(&path),
        3 => fs::remove_file(&path),
        4 => fs::remove_dir_all(&path),
        5 | 6 => fs::rename(&path, &other),
        7 => fs::hard_link(&path, &other),
        8 => symlink(&other, &path),
        9 => fs::set_permissions(
            &path,
            fs::Permissions::from_mode([0o700, 0o4755, 0o2711, 0o1777, 0o640, 0][number]),
        ),
        10 => open().and_then(|file| file.write_all_at(&vec![7; 4096 * number], offset)),
        11 => open().and_then(|file| file.set_len(offset)),
        12 => open().and_then(|file| {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(fallocate(&file, flags, offset, 4096 * 20)?)
        }),
        13 => options(File::options().append(true)).and_then(|mut file| file.write_all(b"more")),
        14 => chown(&path, Some(u32::try_from(number).unwrap()), Some(1000)),
        15 => {
            let (name, value) = xattr(number);
            lsetxattr(&path, name, &value, XattrFlags::empty()).map_err(Into::into)
        }
        16 => lremovexattr(&path, xattr(number).0).map_err(Into::into),
        17 => {
            let kind = [FileType::Fifo, FileType::CharacterDevice, FileType::BlockDevice, FileType::Socket]
                [number % 4];
            mknodat(CWD, &path, kind, Mode::from_raw_mode(0o640), 1 << 8 | 3).map_err(Into::into)
        }
        18 => renameat_with(CWD, &path, CWD, &other, RenameFlags::EXCHANGE).map_err(Into::into),
        _ => {
            let time = Timespec { tv_sec: 1_000_000 * number as i64, tv_nsec: 5 };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(Into::into)
        }
    };
    let ok = if result.is_ok() { "" } else { " (failed)" };
    format!("{what}/{number}/{offset} {} {}{ok}", path.display(), other.display())
}

fn random_changes(place: &Path, tracking: Tracking) {
    let seed = match std::env::var("GANTRY_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::from_ne_bytes(*uuid::Uuid::new_v4().as_bytes().first_chunk().unwrap()) | 1,
    };
    let mut dice = Dice(seed);
    let mut pair = Pair::within(place, tracking, |root| {
        for _ in 0..30 {
            change(&mut dice, root);
        }
    });
    let from = pair.from();
    for round in 0..60 {
        let count = dice.below(14);
        let done: Vec<String> = (0..count).map(|_| change(&mut dice, &from)).collect();
        if round % 2 == 0 {
            pair.round()
        } else {
            pair.last(&Suspects::default())
        };
        let what = format!("round {round} of seed {seed}, {tracking:?}: {done:#?}");
        assert_same(&tree(&from), &tree(&pair.to()), &what);
    }
}

#[test]
fn random_changes_are_followed() {
    random_changes(&std::env::temp_dir(), Tracking::Best);
    random_changes(&std::env::temp_dir(), Tracking::Names);
    random_changes(&std::env::temp_dir(), Tracking::Walk);
}

#[test]
fn random_changes_of_a_tmpfs_are_followed() {
    random_changes(Path::new("/dev/shm"), Tracking::Best);
    random_changes(Path::new("/dev/shm"), Tracking::Names);
    random_changes(Path::new("/dev/shm"), Tracking::Walk);
}

struct SetOnDrop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Changes while rounds run, from another thread; then one round when it is still. A round that fails ends a move, and
/// so it ends this one: most must not.
#[test]
fn changes_during_rounds_are_followed() {
    let mut ended = 0;
    for tracking in [Tracking::Best, Tracking::Names, Tracking::Walk] {
        for place in [std::env::temp_dir().as_path(), Path::new("/dev/shm")] {
            let seed = u64::from_ne_bytes(*uuid::Uuid::new_v4().as_bytes().first_chunk().unwrap()) | 1;
            let mut pair = Pair::within(place, tracking, |_| {});
            let from = pair.from();
            let stop = std::sync::atomic::AtomicBool::new(false);
            let going = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut dice = Dice(seed);
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        change(&mut dice, &from);
                    }
                });
                // Also when a round fails: the other thread would go on for ever.
                let _stop = SetOnDrop(&stop);
                (0..40).all(|_| pair.try_round())
            });
            if !going {
                ended += 1;
                continue;
            }
            pair.last(&Suspects::default());
            let what = format!("seed {seed}, {tracking:?} on {}", place.display());
            assert_same(&tree(&from), &tree(&pair.to()), &what);
        }
    }
    assert!(ended < 4, "{ended} of 6 ended");
}
