//! Checkpoints that are damaged, of another machine, or not the caller's alone are refused before a process is made. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed step is the test's failure")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::wait_for;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;

fn agent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_node-agent")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a restore says against the directory; nothing has come of it.
#[track_caller]
fn refusal(dir: &Path, pid: &str) -> String {
    let output = agent(&["restore", "--from", dir.to_str().unwrap(), "--detach"]);
    assert_eq!(output.status.code(), Some(1), "{}", error(&output));
    assert!(!Path::new("/proc").join(pid).exists(), "a process was made: {}", error(&output));
    let shown = agent(&["inspect", dir.to_str().unwrap()]);
    assert!(!shown.status.success(), "inspect takes what restore refuses");
    error(&output)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn what_is_not_as_it_was_written_is_refused() {
    let dir = tempfile::Builder::new().prefix("gantry-cp-").tempdir().unwrap();
    let good = dir.path().join("good");
    // Without descriptors that the tests were started with.
    let program = "import os; os.closerange(3, 1024); os.execvp('sleep', ['sleep', '1000'])";
    let mut child = { Command::new("python3") }
        .args(["-c", program])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id().to_string();
    let name = Path::new("/proc").join(&pid).join("comm");
    wait_for("it sleeps", || fs::read_to_string(&name).is_ok_and(|name| name == "sleep\n"));
    umask(Mode::empty());
    let made = agent(&["checkpoint", "--pid", &pid, "--out", good.to_str().unwrap()]);
    assert!(made.status.success(), "{}", error(&made));
    child.wait().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&good), 0o700);
    let names = ["checkpoint", "files", "description.json"];
    for name in names {
        assert_eq!(mode(&good.join(name)), 0o600, "{name}");
    }

    let mut number = 0;
    let mut with = |change: &dyn Fn(&Path)| -> String {
        number += 1;
        let bad = dir.path().join(number.to_string());
        copy(&good, &bad);
        change(&bad);
        let said = refusal(&bad, &pid);
        fs::remove_dir_all(&bad).unwrap();
        said
    };
    let contents = fs::read(good.join("checkpoint")).unwrap();
    for length in [0, 1, contents.len() / 2, contents.len() - 1] {
        let said = with(&|bad| fs::write(bad.join("checkpoint"), &contents[..length]).unwrap());
        assert!(said.contains(&format!("it has {length} bytes, not {}", contents.len())), "{said}");
    }
    for at in (0..12).map(|part| part * (contents.len() - 1) / 11) {
        let said = with(&|bad| {
            let mut flipped = contents.clone();
            flipped[at] ^= 0x10;
            fs::write(bad.join("checkpoint"), flipped).unwrap();
        });
        assert!(said.contains("its SHA-256 is"), "byte {at}: {said}");
    }
    let text = fs::read_to_string(good.join("description.json")).unwrap();
    for at in (0..12).map(|part| part * (text.len() - 1) / 11) {
        let said = with(&|bad| {
            let mut flipped = text.clone().into_bytes();
            flipped[at] ^= 1;
            fs::write(bad.join("description.json"), flipped).unwrap();
        });
        assert!(said.contains("description.json is damaged"), "byte {at}: {said}");
    }
    let edits = [
        ("\"version\": 2", "\"version\": 3", "it has version 3, this program reads 2"),
        ("x86_64", "aarch64", "it was changed after it was written"),
        ("\"checkpoint\": {", "\"../checkpoint\": {", "it was changed after it was written"),
    ];
    for (from, to, expected) in edits {
        assert!(text.contains(from), "{text}");
        let said = with(&|bad| fs::write(bad.join("description.json"), text.replace(from, to)).unwrap());
        assert!(said.contains(expected), "{said}");
    }
    for name in names {
        let said = with(&|bad| fs::remove_file(bad.join(name)).unwrap());
        assert!(said.contains(name) && said.contains("No such file"), "{said}");
        // The same content, from elsewhere.
        let said = with(&|bad| {
            fs::remove_file(bad.join(name)).unwrap();
            symlink(good.join(name), bad.join(name)).unwrap();
        });
        assert!(said.contains("symbolic link"), "{said}");
        let said = with(&|bad| {
            fs::remove_file(bad.join(name)).unwrap();
            fs::hard_link(good.join(name), bad.join(name)).unwrap();
        });
        assert!(said.contains("not a file of its own"), "{said}");
    }
    let said = with(&|bad| fs::set_permissions(bad, fs::Permissions::from_mode(0o755)).unwrap());
    assert!(said.contains("mode 0755") && said.contains("chmod 700"), "{said}");
    let said = with(&|bad| nix::unistd::chown(bad, Some(65534.into()), None).unwrap());
    assert!(said.contains("belongs to user 65534"), "{said}");

    // And it is restored as it is.
    let restored = agent(&["restore", "--from", good.to_str().unwrap(), "--detach"]);
    assert!(restored.status.success(), "{}", error(&restored));
    wait_for("it sleeps", || Path::new("/proc").join(&pid).exists());
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
}
