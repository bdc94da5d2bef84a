//! What a target does with shapes and pages, and whether it then holds what the programs hold.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use engine::source::Source;
use image::pages::Owner;
use image::shape::{Backing, ProcessShape, Shape, Vma};

use super::Copy;

/// What a target does to contents when it follows from one shape to the next: it keeps them only where the
/// same thing stays mapped.
pub(crate) fn follow(copy: &mut Copy, old: &Shape, new: &Shape) {
    let before: BTreeMap<i32, &ProcessShape> = old.processes.iter().map(|p| (p.pid, p)).collect();
    let after: BTreeMap<i32, &ProcessShape> = new.processes.iter().map(|p| (p.pid, p)).collect();
    copy.pages.retain(|(owner, at), _| {
        let pid = match owner {
            Owner::Process(pid) => pid,
            Owner::Template => return false,
            Owner::Object(id) => return new.objects.iter().any(|object| object.id == *id),
            Owner::Ghost(_) => return true,
        };
        let (Some(was), Some(is)) = (before.get(pid), after.get(pid)) else {
            return false;
        };
        let find = |p: &ProcessShape| p.mm.vmas.iter().find(|v| (v.start..v.end).contains(at)).cloned();
        was.mm.exe == is.mm.exe
            && match (find(was), find(is)) {
                (Some(was), Some(is)) => what(&was, *at) == what(&is, *at),
                _ => false,
            }
    });
}

/// What a target does when processes begin with a template: each has of it what it maps in the same way.
pub(crate) fn begin(copy: &mut Copy, template: &Shape, shape: &Shape) {
    let mut pages: Vec<(u64, Vec<u8>)> = Vec::new();
    copy.pages.retain(|(owner, at), page| {
        let from = *owner == Owner::Template;
        if from {
            pages.push((*at, std::mem::take(page)));
        }
        !from
    });
    let find = |vmas: &[Vma], at: u64| {
        let mut found = vmas.iter().find(|v| (v.start..v.end).contains(&at)).cloned()?;
        found.flags.huge_page = false;
        Some((what(&found, at), found.flags.grows_down))
    };
    for (at, page) in &pages {
        let was = find(&template.template, *at);
        assert!(was.is_some(), "{at:#x} is not mapped by the template");
        for process in shape.processes.iter().filter(|process| find(&process.mm.vmas, *at) == was) {
            copy.pages.insert((Owner::Process(process.pid), *at), page.clone());
        }
    }
}

fn what(vma: &Vma, at: u64) -> String {
    match &vma.backing {
        Backing::File { file, offset, shared, .. } => {
            format!("{} {:?} {} {shared}", file.path, file.ghost, at - vma.start + offset)
        }
        Backing::Object { id, offset, shared, .. } => format!("{id} {} {shared}", at - vma.start + offset),
        other => format!("{other:?} {:?}", (vma.flags.no_reserve, vma.flags.huge_page)),
    }
}

/// Compares every page of every process with what was sent. Gives the number of pages compared.
pub(crate) fn compare(root: i32, shape: &Shape, copy: &Copy) -> usize {
    let mut compared = 0;
    for process in &shape.processes {
        if process.zombie.is_some() {
            continue;
        }
        // The test runs in the programs' pid namespace.
        let mem = File::open(format!("/proc/{}/mem", process.pid)).unwrap();
        for vma in &process.mm.vmas {
            let (private, object) = match &vma.backing {
                Backing::Anonymous => (true, None),
                Backing::File { shared, .. } => (!shared, None),
                Backing::Object { id, offset, shared, .. } => (!shared, Some((*id, *offset))),
                Backing::Vdso | Backing::Vvar(_) => continue,
            };
            if !private && object.is_none() {
                continue;
            }
            let mut content = vec![0; 4096];
            for at in (vma.start..vma.end).step_by(4096) {
                if mem.read_exact_at(&mut content, at).is_err() {
                    // Beyond the end of the file.
                    continue;
                }
                let under = object.and_then(|(id, offset)| {
                    copy.pages.get(&(Owner::Object(id), at - vma.start + offset)).cloned()
                });
                let held =
                    if private { copy.pages.get(&(Owner::Process(process.pid), at)).cloned() } else { None };
                let expected = held
                    .or(under)
                    .or_else(|| file_page(process.pid, vma, at))
                    .unwrap_or_else(|| vec![0; 4096]);
                assert!(
                    content == expected,
                    "root {root} pid {} page {at:#x} of {vma:?} differs: {:?}.. is, {:?}.. sent {}",
                    process.pid,
                    &content[..16],
                    &expected[..16],
                    copy.pages.contains_key(&(Owner::Process(process.pid), at)),
                );
                compared += 1;
            }
        }
    }
    compared
}

/// What a private file mapping shows where nothing was written.
fn file_page(pid: i32, vma: &Vma, at: u64) -> Option<Vec<u8>> {
    let Backing::File { offset, .. } = &vma.backing else {
        return None;
    };
    let file = File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end)).unwrap();
    let mut page = vec![0; 4096];
    let mut done = 0;
    while let Ok(got @ 1..) = file.read_at(&mut page[done..], at - vma.start + offset + done as u64) {
        done += got;
    }
    Some(page)
}

/// A fork or exec in flight is refused by name: tries until there is none.
pub(crate) fn attach(spec: &engine::source::TreeSpec) -> Source {
    let mut last = None;
    for _ in 0..50 {
        match Source::attach(spec) {
            Ok(source) => return source,
            Err(error) => last = Some(error),
        }
    }
    panic!("{last:?}");
}

pub(crate) fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}
