//! What file systems that a container mounted belong to, beside the container: pid namespaces, IPC namespaces, directories.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;

use image::{Pid, Refusal};
use rustix::fs::fstat;
use sys::mount::FsContext;
use sys::ns::{self, Kind};

use super::explore::{Insider, Seen};
use super::options;
use super::tree::{FileSystem, Node, Origin, Shows, Tree, refusal};

fn shows<'a>(tree: &'a Tree, fs: &FileSystem) -> impl Iterator<Item = &'a Node> {
    let id = fs.id;
    let is_it =
        move |node: &&Node| matches!(&node.shows, Shows::Part { of: Origin::Made(of), .. } if *of == id);
    tree.nodes.iter().filter(is_it)
}

/// Notes of every proc whose processes it shows: `own` is the pid namespace of the container.
pub(super) fn processes(
    tree: &mut Tree,
    refusals: &mut Vec<Refusal>,
    found: &BTreeMap<i32, Seen>,
    own: u64,
    member: &dyn Fn(u64) -> Pid,
) {
    for fs in tree.made.iter_mut().filter(|fs| fs.fs_type == "proc") {
        let shows =
            |node: &&Node| matches!(&node.shows, Shows::Part { of: Origin::Made(id), .. } if *id == fs.id);
        let seen = |node: &Node| found.get(&i32::try_from(node.id).ok()?)?.processes;
        let mut nodes = tree.nodes.iter().filter(shows).peekable();
        let Some(first) = nodes.peek().copied() else { continue };
        match nodes.find_map(seen) {
            Some(whose) => fs.pid_space = if whose == own { 0 } else { whose },
            None if found.is_empty() => {}
            None => {
                let reason =
                    "the pid namespace whose processes it shows has ended, or no mount shows all of it";
                let refusal = refusal(&first.point, reason, "unmount it before the move");
                refusals.push(Refusal { pid: member(first.space), ..refusal });
            }
        }
    }
}

/// An overlay is made again in the container's mount namespace: one that only another one has must have the same layers
/// there.
pub(super) fn layers(
    tree: &Tree,
    refusals: &mut Vec<Refusal>,
    insiders: &[Insider],
    member: &dyn Fn(u64) -> Pid,
) -> io::Result<()> {
    let Some((own, others)) = insiders.split_first() else { return Ok(()) };
    for fs in tree.made.iter().filter(|fs| fs.fs_type == "overlay") {
        let Some(node) = shows(tree, fs).min_by_key(|node| node.space).filter(|node| node.space != 0) else {
            continue;
        };
        let Some(there) = others.iter().find(|insider| insider.space.number == node.space) else { continue };
        let paths: Vec<String> = options::layers(fs).map(str::to_owned).collect();
        let (here, there) = (own.lead_to(paths.clone())?, there.lead_to(paths.clone())?);
        let differs = paths
            .iter()
            .zip(here.iter().zip(&there))
            .find(|(_, (here, there))| here.is_none() || here != there);
        if let Some((path, _)) = differs {
            let reason = format!(
                "the layer {path} of its overlay is another directory in the container's own mount namespace"
            );
            let refusal = refusal(&node.point, reason, "unmount it before the move");
            refusals.push(Refusal { pid: member(node.space), ..refusal });
        }
    }
    Ok(())
}

/// A file system of message queues shows those of one IPC namespace, which has one such file system.
pub(super) fn queues(
    tree: &Tree,
    refusals: &mut Vec<Refusal>,
    pid: i32,
    member: &dyn Fn(u64) -> Pid,
) -> io::Result<()> {
    let mut made = tree.made.iter().filter(|fs| fs.fs_type == "mqueue").peekable();
    if made.peek().is_none() {
        return Ok(());
    }
    let ipc = ns::open(pid, Kind::Ipc)?;
    let own = ns::within(ipc.as_fd(), Kind::Ipc, || -> io::Result<u64> {
        Ok(fstat(FsContext::open("mqueue")?.mount(0)?)?.st_dev)
    })??;
    let own = u64::from(rustix::fs::major(own)) << 32 | u64::from(rustix::fs::minor(own));
    for fs in made.filter(|fs| fs.id != own) {
        let Some(node) = shows(tree, fs).next() else { continue };
        let refusal = refusal(
            &node.point,
            "it shows the message queues of another IPC namespace than the container's: not carried yet",
            "unmount it before the move",
        );
        refusals.push(Refusal { pid: member(node.space), ..refusal });
    }
    Ok(())
}

/// A writable overlay on a kernel that does not report what is written through it to files of its upper layer.
pub(super) fn unreported(tree: &Tree, release: &str) -> Option<Refusal> {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next()?, numbers.next()?);
    let fs = tree.made.iter().find(|fs| {
        fs.fs_type == "overlay" && fs.options.iter().any(|option| options::name(option) == "upperdir")
    })?;
    let shows = |shows: &Shows| matches!(shows, Shows::Part { of: Origin::Made(id), .. } if *id == fs.id);
    let node = tree.nodes.iter().find(|node| version < (6, 5) && shows(&node.shows))?;
    let reason = "a writable overlay: this kernel does not report what is written through it";
    Some(refusal(&node.point, reason, "unmount it before the move, or run Linux 6.5 or later"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writable_overlays_need_a_kernel_that_reports() {
        let mut tree = Tree::default();
        let options = vec!["lowerdir=/l".to_owned(), "upperdir=/u".to_owned()];
        tree.made.push(FileSystem {
            id: 1,
            fs_type: "overlay".into(),
            source: vec![],
            options,
            read_only: false,
            pid_space: 0,
        });
        tree.nodes.push(Node {
            space: 0,
            id: 1,
            parent: None,
            place: vec![],
            point: b"/o".to_vec(),
            shows: Shows::Part { of: Origin::Made(1), path: vec![], deleted: false },
            depth: 1,
            directory: true,
            attributes: None,
            shared: None,
            master: None,
            unbindable: false,
        });
        assert!(unreported(&tree, "6.1.0-38-amd64").unwrap().to_string().starts_with("mount /o: "));
        assert!(unreported(&tree, "6.5.0").is_none() && unreported(&tree, "6.18.44-x").is_none());
        tree.made[0].options.pop();
        assert!(unreported(&tree, "6.1.0").is_none(), "it is not writable");
    }
}
