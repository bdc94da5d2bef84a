//! What a peer may say about groups. Pure.

use image::groups::{Group, Groups};

use super::known::{self, Class};

/// More groups than any container has.
const MAX_GROUPS: usize = 20_000;
/// Longest path below the container's group, and longest line, bytes.
const MAX_TEXT: usize = 4096;

/// Everything names groups below the container's own and their settings, and nothing else. Err says what does not.
pub(super) fn check(groups: &Groups) -> Result<(), String> {
    if groups.trees.iter().map(|tree| tree.groups.len()).sum::<usize>() > MAX_GROUPS {
        return Err(format!("it has more than {MAX_GROUPS} control groups"));
    }
    for tree in &groups.trees {
        if tree.groups.first().is_none_or(|own| !own.path.is_empty()) {
            return Err("its own control group is not the first one".to_owned());
        }
        for group in &tree.groups[1..] {
            let plain = |part: &str| {
                !part.is_empty()
                    && part != "."
                    && part != ".."
                    && part.len() <= 255
                    && !part.contains(['\0', '\n'])
            };
            if group.path.len() > MAX_TEXT || !group.path.split('/').all(plain) {
                return Err(format!("{:?} is no control group", group.path));
            }
        }
        for group in &tree.groups {
            settings(group, tree.unified, &tree.controllers)?;
        }
    }
    Ok(())
}

fn settings(group: &Group, unified: bool, controllers: &[String]) -> Result<(), String> {
    let name = |file: &str| {
        file.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
            && !file.starts_with('.')
            && file.len() <= 255
    };
    for value in &group.values {
        let file = &value.file;
        let setting = matches!(known::class(file), Class::Placement | Class::Limit | Class::Devices);
        let core = if unified {
            file.starts_with("cgroup.")
        } else {
            file == "notify_on_release" || file == "cgroup.clone_children"
        };
        let known = match known::controller(file) {
            Some(controller) => controllers.iter().chain(&group.controllers).any(|known| known == controller),
            None => core,
        };
        let plain = |line: &String| line.len() <= MAX_TEXT && !line.contains(['\0', '\n']);
        if !name(file) || !setting || !known || !value.lines.iter().all(plain) {
            return Err(format!("{file:?} is no setting of a control group"));
        }
    }
    let words = group.subtree.iter().chain(&group.controllers);
    if let Some(word) = words.clone().find(|word| !name(word) || word.is_empty()) {
        return Err(format!("{word:?} is no controller"));
    }
    match group.access.iter().find(|access| !name(&access.file) || access.mode & !0o777 != 0) {
        Some(access) => Err(format!("{:?} cannot have such an owner or mode", access.file)),
        None => Ok(()),
    }
}
