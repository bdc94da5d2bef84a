//! Removes what `dev up` made: processes, control groups, files. Works after any partial failure, and twice.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::plan::Layout;
use super::state::{Lock, State};

/// How long a control group may stay busy after its last process has been killed.
const CGROUP_LIMIT: Duration = Duration::from_secs(10);

/// Ends every process of the hosts and removes their control groups. The files stay, logs among them.
pub(crate) fn stop(state: &State) -> Result<()> {
    // Every process is tried even when one cannot be killed; the first failure is told.
    let mut outcome = Ok(());
    let processes = state.hosts.iter().map(|(_, process)| process).chain(&state.forwarder);
    for process in processes {
        outcome = outcome.and(process.kill());
    }
    outcome.and(remove_cgroups(&state.cgroup_prefix()))
}

/// Stops the hosts and removes the files that `up` made in the directory, and the directory if nothing else is
/// in it. Answers what of others' is left there. Ok when there is nothing to remove.
pub(crate) fn down(layout: &Layout, keep_logs: bool) -> Result<Vec<PathBuf>> {
    if !layout.dir().exists() {
        return Ok(Vec::new());
    }
    let Some(state) = State::load(layout)? else {
        return Ok(others(layout.dir()));
    };
    let lock = Lock::take(layout)?;
    stop(&state)?;
    let mut ours = vec![layout.dir().join("pki"), layout.local(), layout.state().with_extension("json.new")];
    if !keep_logs {
        ours.extend([layout.dir().join("hosts"), layout.dir().join("forwarder.log")]);
    }
    // The record goes last: until then a failed `down` can be repeated.
    ours.extend([layout.lock(), layout.state()]);
    for path in &ours {
        remove(path)?;
    }
    drop(lock);
    if fs::remove_dir(layout.dir()).is_ok() {
        for dir in state.made.iter().rev() {
            // A parent that others use meanwhile stays.
            drop(fs::remove_dir(dir));
        }
        return Ok(Vec::new());
    }
    Ok(others(layout.dir()))
}

fn others(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Where control group hierarchies are mounted, of both versions (proc_pid_mountinfo(5)).
pub(crate) fn cgroup_mounts() -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(parse_mountinfo(&text))
}

fn parse_mountinfo(text: &str) -> Vec<PathBuf> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let kind = after.split(' ').next()?;
        let point = before.split(' ').nth(4)?;
        matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(point))
    };
    text.lines().filter_map(mount).collect()
}

fn remove_cgroups(prefix: &str) -> Result<()> {
    for mount in cgroup_mounts()? {
        for group in find(&mount, prefix, 3) {
            remove_tree(&group)?;
        }
    }
    Ok(())
}

/// Directories whose name begins with `prefix`, at most `depth` levels below `dir`: an agent that is itself in a
/// group makes its own below that.
fn find(dir: &Path, prefix: &str, depth: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in others(dir) {
        if path.file_name().is_some_and(|own| own.as_encoded_bytes().starts_with(prefix.as_bytes())) {
            found.push(path);
        } else if depth > 1 && path.is_dir() {
            found.extend(find(&path, prefix, depth - 1));
        }
    }
    found
}

/// Removes a control group and those below it. Its processes have been killed; the kernel may need a moment to
/// take them out.
fn remove_tree(group: &Path) -> Result<()> {
    for child in others(group).into_iter().filter(|path| path.is_dir()) {
        remove_tree(&child)?;
    }
    let end = Instant::now() + CGROUP_LIMIT;
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < end => {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            other => return other.with_context(|| format!("remove the control group {}", group.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let text = "33 31 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let expected = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(parse_mountinfo(text), expected);
    }

    #[test]
    fn down_removes_its_own_files_only_and_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("dev"));
        assert!(down(&layout, false).unwrap().is_empty());
        fs::create_dir_all(layout.host("node-a")).unwrap();
        fs::create_dir_all(layout.authority()).unwrap();
        fs::write(layout.dir().join("mine"), "x").unwrap();
        State::new(2).save(&layout).unwrap();
        assert_eq!(down(&layout, false).unwrap(), [layout.dir().join("mine")]);
        assert_eq!(down(&layout, false).unwrap(), [layout.dir().join("mine")]);

        State::new(2).save(&layout).unwrap();
        fs::remove_file(layout.dir().join("mine")).unwrap();
        assert!(down(&layout, false).unwrap().is_empty());
        assert!(!layout.dir().exists());
    }
}
