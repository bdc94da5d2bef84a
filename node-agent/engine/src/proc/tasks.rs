//! Lists: threads, children, descriptors.

use std::io;

use super::{ProcError, words};

/// The numeric names in a directory of procfs, ascending.
fn numeric_entries(path: &str) -> Result<Vec<i32>, ProcError> {
    let fail = |source: io::Error| ProcError::Read { path: path.to_owned(), source };
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Threads of a process, the leader first.
///
/// # Errors
/// [`ProcError`].
pub fn threads(pid: i32) -> Result<Vec<i32>, ProcError> {
    let mut tids = numeric_entries(&format!("/proc/{pid}/task"))?;
    // A thread may have a lower number than its leader once numbers have wrapped.
    tids.sort_by_key(|tid| (*tid != pid, *tid));
    Ok(tids)
}

/// Numbers of the open descriptors of a process, ascending.
///
/// # Errors
/// [`ProcError`].
pub fn descriptors(pid: i32) -> Result<Vec<i32>, ProcError> {
    numeric_entries(&format!("/proc/{pid}/fd"))
}

/// Children of all threads of a process. Exact only while the process is stopped.
///
/// # Errors
/// [`ProcError`].
pub fn children(pid: i32) -> Result<Vec<i32>, ProcError> {
    let all = children_by_thread(pid, &threads(pid)?)?;
    Ok(all.into_iter().flat_map(|(_, children)| children).collect())
}

/// Children of each of these threads of a process, as far as it has any. Exact only while the process is stopped.
///
/// # Errors
/// [`ProcError`].
pub fn children_by_thread(pid: i32, tids: &[i32]) -> Result<Vec<(i32, Vec<i32>)>, ProcError> {
    let mut all = Vec::new();
    for tid in tids {
        match super::read(pid, &format!("task/{tid}/children")) {
            Ok(bytes) => {
                let children = parse_children(&bytes)?;
                if !children.is_empty() {
                    all.push((*tid, children));
                }
            }
            Err(error) if error.is_gone() && *tid != pid => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn parse_children(bytes: &[u8]) -> Result<Vec<i32>, ProcError> {
    words(bytes)
        .map(|word| super::number(word).ok_or_else(|| ProcError::parse("children", super::text(word))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_this_process() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert_eq!(threads(pid).unwrap()[0], pid);
        assert!(descriptors(pid).unwrap().len() >= 3);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = children(pid).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&i32::try_from(child.id()).unwrap()));
        assert!(threads(i32::MAX).unwrap_err().is_gone());
    }
}
