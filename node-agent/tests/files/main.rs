//! Synchronisation of files on the real file system: every kind of entry, changes, deletions, and batches
//! that want to get out. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod random;
mod support;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use node_agent::files::{FilesError, Op, Round, Suspects, Tracking};
use support::Pair;

fn fill(root: &Path) {
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/file"), b"content").unwrap();
    fs::write(root.join("a/b/big"), vec![7_u8; 3 * 1024 * 1024 + 5]).unwrap();
    fs::write(root.join("a/b/c/empty"), b"").unwrap();
    fs::hard_link(root.join("a/file"), root.join("a/b/linked")).unwrap();
    symlink("../file", root.join("a/b/soft")).unwrap();
    symlink("/nowhere", root.join("dangling")).unwrap();
    fs::set_permissions(root.join("a/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(root.join("a/b/big"), Some(1234), Some(4321)).unwrap();
    let run = |program: &str, args: &[&str]| {
        assert!(Command::new(program).args(args).current_dir(root).status().unwrap().success(), "{program}");
    };
    run("mkfifo", &["-m", "640", "a/node-fifo"]);
    run("mknod", &["a/node-null", "c", "1", "3"]);
    run(
        "python3",
        &[
            "-c",
            "import os; os.setxattr('a/file', 'user.key', b'value'); os.truncate('a/sparse', 0) if 0 else open('a/sparse','wb').truncate(50000000)",
        ],
    );
    drop(std::os::unix::net::UnixListener::bind(root.join("a/node-socket")).unwrap());
    run("touch", &["-d", "2001-02-03 04:05:06.789", "a/b/c/empty", "a/b/c", "a/b", "a"]);
}

#[test]
fn every_kind_of_entry_travels_with_its_attributes() {
    let mut pair = Pair::new(fill);
    let round = pair.round();
    assert!(round.entries >= 14 && round.bytes >= 3 * 1024 * 1024, "{round:?}");
    pair.assert_equal();
    let file = |root: &Path, name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(file(&pair.to(), "a/file").ino(), file(&pair.to(), "a/b/linked").ino());
    assert!(file(&pair.to(), "a/sparse").blocks() < 100, "holes stay holes");
    let value = Command::new("python3")
        .args(["-c", "import os; print(os.getxattr('a/file', 'user.key'))"])
        .current_dir(pair.to())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&value.stdout), "b'value'\n");
}

#[test]
fn later_rounds_send_only_changes() {
    let mut pair = Pair::new(fill);
    pair.round();
    // What was made just now could still change within the same clock tick: it is looked at once more.
    std::thread::sleep(std::time::Duration::from_millis(30));
    pair.round();
    assert_eq!(pair.round(), Round::default(), "nothing changed");
    let from = pair.from();
    // One byte of the third chunk, a new name for a file, one name less, a type that changes.
    let mut big = fs::read(from.join("a/b/big")).unwrap();
    big[2 * 1024 * 1024 + 17] = 9;
    fs::write(from.join("a/b/big"), big).unwrap();
    fs::rename(from.join("a/b/c/empty"), from.join("a/renamed")).unwrap();
    fs::remove_file(from.join("a/b/linked")).unwrap();
    fs::remove_file(from.join("dangling")).unwrap();
    fs::create_dir(from.join("dangling")).unwrap();
    fs::write(from.join("dangling/inside"), b"x").unwrap();
    fs::remove_dir_all(from.join("a/b/c")).unwrap();
    fs::set_permissions(from.join("a/renamed"), fs::Permissions::from_mode(0o600)).unwrap();
    let round = pair.round();
    assert!(round.bytes <= 1024 * 1024 + 10, "only the changed chunk of the big file: {round:?}");
    pair.assert_equal();
    // A whole tree goes.
    fs::remove_dir_all(from.join("a")).unwrap();
    pair.round();
    pair.assert_equal();
}

#[test]
fn a_file_written_through_a_mapping_is_compared_by_content() {
    let mut pair = Pair::new(|root| fs::write(root.join("mapped"), vec![1_u8; 8192]).unwrap());
    std::thread::sleep(std::time::Duration::from_millis(30));
    pair.round();
    let path = pair.from().join("mapped");
    let before = fs::metadata(&path).unwrap();
    fs::write(&path, vec![2_u8; 8192]).unwrap();
    // As if the times had not moved: the same stamp, other content.
    let script = format!(
        "import os; os.utime({path:?}, ns=({0}, {0}))",
        before.mtime() * 1_000_000_000 + before.mtime_nsec()
    );
    assert!(Command::new("python3").args(["-c", &script]).status().unwrap().success());
    let mapped = HashMap::from([(before.ino(), vec![(0, 4096)])]);
    pair.last(&Suspects { mapped, open: HashSet::new() });
    pair.assert_equal();
}

#[test]
fn renames_links_and_reused_names_are_followed() {
    let mut pair = Pair::new(fill);
    pair.round();
    std::thread::sleep(std::time::Duration::from_millis(30));
    pair.round();
    let from = pair.from();
    let step = |pair: &mut Pair, change: &dyn Fn()| {
        change();
        pair.round();
        pair.assert_equal();
    };
    // A directory moves, then something in it changes under its new name.
    step(&mut pair, &|| fs::rename(from.join("a/b"), from.join("moved")).unwrap());
    step(&mut pair, &|| fs::write(from.join("moved/c/empty"), b"no more").unwrap());
    step(&mut pair, &|| fs::write(from.join("moved/new"), b"new").unwrap());
    // Another name for a file, the first one goes, the content changes through the other.
    step(&mut pair, &|| fs::hard_link(from.join("moved/new"), from.join("other")).unwrap());
    step(&mut pair, &|| fs::remove_file(from.join("moved/new")).unwrap());
    step(&mut pair, &|| fs::write(from.join("other"), [0; 3]).unwrap());
    // The same name again, as something else, and with another target.
    step(&mut pair, &|| {
        fs::remove_file(from.join("dangling")).unwrap();
        symlink("/elsewhere", from.join("dangling")).unwrap();
    });
    step(&mut pair, &|| {
        fs::remove_dir_all(from.join("moved")).unwrap();
        fs::write(from.join("moved"), b"a file now").unwrap();
    });
    step(&mut pair, &|| {
        fs::create_dir_all(from.join("x/y/z")).unwrap();
        fs::write(from.join("x/y/z/deep"), b"deep").unwrap();
        fs::rename(from.join("x/y"), from.join("y")).unwrap();
        fs::write(from.join("y/z/deeper"), b"deeper").unwrap();
    });
    // Directories made again, perhaps with the inode numbers that they had.
    for number in 0..10 {
        step(&mut pair, &|| {
            fs::remove_dir_all(from.join("y/z")).unwrap();
            fs::create_dir(from.join("y/z")).unwrap();
            fs::create_dir(from.join("y/z/inner")).unwrap();
            fs::write(from.join("y/z/inner").join(number.to_string()), b"again").unwrap();
            fs::write(from.join("y/z/deep"), b"again").unwrap();
        });
    }
    step(&mut pair, &|| fs::write(from.join("y/z/deep"), vec![0; 100]).unwrap());
    assert_eq!(pair.round().bytes, 0, "it is young enough to be compared once more, but has not changed");
}

#[test]
fn the_log_is_continued() {
    let mut pair = Pair::new(|_| {});
    let (from, to) = (pair.dir.path().join("from.log"), pair.dir.path().join("to.log"));
    fs::write(&from, "one\n").unwrap();
    pair.round();
    fs::write(&from, "one\ntwo\n").unwrap();
    pair.round();
    assert_eq!(fs::read_to_string(&to).unwrap(), "one\ntwo\n");
}

#[test]
fn a_hostile_batch_touches_nothing_outside() {
    let mut pair = Pair::new(|_| {});
    let outside = pair.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), b"secret").unwrap();
    symlink(&outside, pair.to().join("door")).unwrap();
    let absolute = outside.join("secret").to_str().unwrap().as_bytes().to_vec();
    let paths: [&[u8]; 9] = [
        b"../outside/secret",
        b"door/secret",
        &absolute,
        b"a/../../outside/secret",
        b"",
        b".",
        b"..",
        b"a//b",
        b"door/",
    ];
    for path in paths {
        let path = path.to_vec();
        let ops = [
            Op::Remove { area: 0, path: path.clone() },
            Op::File { area: 0, path: path.clone(), size: 0, fresh: true },
            Op::Rename { area: 0, path: path.clone(), to: b"stolen".to_vec() },
            Op::Rename { area: 0, path: b"d".to_vec(), to: path.clone() },
            Op::Symlink { area: 0, path: path.clone(), target: b"x".to_vec() },
            Op::HardLink { area: 0, path: b"stolen".to_vec(), to: path.clone() },
            Op::Node { area: 0, path: path.clone(), kind: 0o010_000, device: 0 },
        ];
        for op in ops {
            let batch = postcard::to_stdvec(&vec![op.clone()]).unwrap();
            let error = pair.target.apply(&batch).expect_err(&format!("{op:?}"));
            assert!(matches!(error, FilesError::Refused(_) | FilesError::File { .. }), "{op:?}: {error}");
        }
    }
    let wrong = [
        Op::Chunk { offset: 0, length: 1, extents: vec![], data: vec![1], hash: 0 },
        Op::Verify { hash: 0 },
        Op::Remove { area: 1, path: b"x".to_vec() },
        Op::Node { area: 0, path: b"x".to_vec(), kind: 0o100_000, device: 0 },
    ];
    for op in wrong {
        let batch = postcard::to_stdvec(&vec![op]).unwrap();
        assert!(matches!(pair.target.apply(&batch), Err(FilesError::Refused(_))));
    }
    assert!(pair.target.apply(&[0xff; 64]).is_err());
    // Removing the link removes the link alone.
    let batch = postcard::to_stdvec(&vec![Op::Remove { area: 0, path: b"door".to_vec() }]).unwrap();
    pair.target.apply(&batch).unwrap();
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
    assert!(fs::read_dir(pair.to()).unwrap().next().is_none(), "nothing was stolen");
}

#[test]
fn a_directory_that_is_renamed_is_not_copied_again() {
    let mut pair = Pair::new(fill);
    pair.round();
    std::thread::sleep(std::time::Duration::from_millis(30));
    pair.round();
    fs::rename(pair.from().join("a"), pair.from().join("z")).unwrap();
    let seen = pair.round();
    assert_eq!(seen.bytes, 0, "{seen:?}");
    pair.assert_equal();
    // A file in the place of a directory, and a directory in the place of a file.
    fs::rename(pair.from().join("z/b"), pair.from().join("was-b")).unwrap();
    fs::write(pair.from().join("z/b"), b"a file").unwrap();
    fs::remove_file(pair.from().join("z/file")).unwrap();
    fs::create_dir(pair.from().join("z/file")).unwrap();
    pair.round();
    pair.assert_equal();
}

#[test]
fn paths_longer_than_the_kernel_takes_at_once_travel() {
    let mut pair = Pair::new(|_| {});
    // Made and removed by a shell that changes into each directory.
    let script = "i=0; while [ $i -lt 40 ]; do mkdir $0 && cd $0; i=$((i+1)); done; echo deep > file";
    let name = "n".repeat(200);
    let run = |script: &str, dir: &Path| {
        let output = Command::new("sh").args(["-c", script, &name]).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    run(script, &pair.from());
    pair.round();
    let look = "while cd $0 2>/dev/null; do :; done; cat file";
    assert_eq!(run(look, &pair.to()), b"deep\n");
    let change = "while cd $0 2>/dev/null; do :; done; echo changed > file";
    run(change, &pair.from());
    pair.round();
    assert_eq!(run(look, &pair.to()), b"changed\n");
    fs::remove_dir_all(pair.from().join(&name)).unwrap();
    pair.round();
    pair.assert_equal();
}

/// Runs python with the path of a file as its argument.
fn python(script: &str, path: &Path) -> std::process::Child {
    Command::new("python3")
        .args(["-c", script])
        .arg(path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn what_was_written_through_a_mapping_that_is_gone_is_found() {
    // A tmpfs does not change a file's times for it.
    let mut pair = Pair::within(Path::new("/dev/shm"), Tracking::Best, |root| {
        fs::write(root.join("mapped"), vec![1_u8; 8192]).unwrap();
    });
    std::thread::sleep(std::time::Duration::from_millis(30));
    pair.round();
    pair.round();
    let script =
        "import mmap, os, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 8192); m[5000] = 7";
    assert!(python(script, &pair.from().join("mapped")).wait().unwrap().success());
    pair.last(&Suspects::default());
    pair.assert_equal();
    assert_eq!(fs::read(pair.to().join("mapped")).unwrap()[5000], 7);
}

#[test]
fn a_file_that_changes_while_it_is_copied_is_copied_again() {
    use std::io::BufRead as _;
    let mut pair = Pair::new(|root| fs::write(root.join("busy"), vec![1_u8; 24 << 20]).unwrap());
    let script = "import os, sys\nf = open(sys.argv[1], 'r+b', 0)\nprint('begun', flush=True)\nn = 0\n\
        while not os.path.exists(sys.argv[1] + '-stop'):\n  f.seek(4096 * (n % 6000)); f.write(b'%d' % n); n += 1\n";
    let mut writer = python(script, &pair.from().join("busy"));
    let mut line = String::new();
    std::io::BufReader::new(writer.stdout.take().unwrap()).read_line(&mut line).unwrap();
    // It does not become quiet: the last round must say so and not pretend.
    pair.round();
    let target = &mut pair.target;
    let source = &mut pair.source;
    let mut last =
        || source.last(&Suspects::default(), &mut |batch| target.apply(batch).map_err(std::io::Error::other));
    // The writer may get no processor for as long as a copy takes, but not again and again.
    assert!((0..50).any(|_| matches!(last(), Err(FilesError::Unsettled(_)))), "it was never busy");
    // While it runs, the next round copies it again.
    fs::write(pair.from().join("busy-stop"), b"").unwrap();
    assert!(writer.wait().unwrap().success());
    pair.round();
    pair.assert_equal();
}

#[test]
fn a_full_disk_at_the_target_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("large"), vec![3_u8; 4 << 20]).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "small"]).arg(&to).status();
    assert!(mounted.unwrap().success());
    let mut source = node_agent::files::Source::new(vec![support::area(&from)], dir.path().join("a"));
    let mut target = node_agent::files::Target::new(vec![support::area(&to)], dir.path().join("b"));
    let mut error = None;
    let sent = source.round(&mut |batch| {
        target.apply(batch).map_err(|failed| {
            error = Some(failed);
            std::io::Error::other("stop")
        })
    });
    drop(target);
    assert!(Command::new("umount").arg(&to).status().unwrap().success());
    assert!(matches!(sent, Err(FilesError::Send(_))));
    let Some(FilesError::File { path, source, .. }) = error else { panic!("{error:?}") };
    assert_eq!((path.as_path(), source.kind()), (Path::new("large"), std::io::ErrorKind::StorageFull));
    assert_eq!(fs::metadata(from.join("large")).unwrap().len(), 4 << 20);
}

#[test]
fn what_reads_back_differently_is_refused() {
    let mut pair = Pair::new(|_| {});
    let ops = vec![Op::File { area: 0, path: b"f".to_vec(), size: 5, fresh: true }, Op::Verify { hash: 7 }];
    let failed = pair.target.apply(&postcard::to_stdvec(&ops).unwrap());
    assert!(matches!(failed, Err(FilesError::Differs(_))), "{failed:?}");
}

#[test]
fn files_ahead_come_with_their_directories_and_are_right_in_the_end() {
    let mut pair = Pair::new(fill);
    let target = &mut pair.target;
    let paths = ["/a/b/big", "/a/none", "/elsewhere/x", "/a/b/c/empty"].map(std::path::PathBuf::from);
    let sent = pair.source.ahead(&paths, &mut |batch| target.apply(batch).map_err(std::io::Error::other));
    assert_eq!(sent.unwrap().bytes, 3 * 1024 * 1024 + 5);
    assert_eq!(fs::read(pair.to().join("a/b/big")).unwrap(), fs::read(pair.from().join("a/b/big")).unwrap());
    assert!(!pair.to().join("a/file").exists());
    fs::remove_file(pair.from().join("a/b/c/empty")).unwrap();
    pair.round();
    pair.assert_equal();
}
