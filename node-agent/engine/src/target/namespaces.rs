//! Namespaces of processes beside the container's own: made and shared while the source still runs, filled from the
//! image.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use image::Pid;
use image::namespaces::{Contents, Namespace, Nested};
use image::shape::Shape;
use libc::{SYS_chroot, SYS_close, SYS_fchdir, SYS_setns, SYS_unshare};
use sys::ns::{self, Kind};
use sys::ptrace::Stopped;
use sys::tape::target::TargetTape;

use super::error::TargetError;
use super::mapping::Surroundings;
use super::plan::fds;
use super::plant::Channel;
use super::restore::Restorer;

use super::script::{Block, Call, call};
use super::settings;
use super::skeleton::{Skeleton, lost};
use super::tree::Tree;

const KINDS: [Kind; 3] = [Kind::Uts, Kind::Ipc, Kind::Mnt];

fn number(nested: &mut Nested, kind: Kind) -> &mut u64 {
    match kind {
        Kind::Uts => &mut nested.uts,
        Kind::Mnt => &mut nested.mnt,
        _ => &mut nested.ipc,
    }
}

impl Tree {
    /// Puts every process into its namespaces. The first one of a namespace makes it, the others enter it. A thread
    /// has those of its maker: threads that were made ahead are ended where something changes.
    ///
    /// # Errors
    /// A [`TargetError`]; the skeletons are lost then.
    pub(super) fn enter_namespaces(
        &mut self,
        shape: &Shape,
        around: &Surroundings<'_>,
    ) -> Result<(), TargetError> {
        for process in shape.processes.iter().filter(|process| process.zombie.is_none()) {
            let (pid, mut wanted) = (process.pid, process.namespaces);
            for kind in KINDS {
                let id = *number(&mut wanted, kind);
                let skeleton = self.get(pid)?;
                let known = kind != Kind::Mnt || around.root.is_nested(id, skeleton.entered.as_ref());
                if *number(&mut skeleton.namespaces, kind) == id && known {
                    continue;
                }
                self.get(pid)?.set_threads(around.tape, &[])?;
                match self.member(kind, id) {
                    _ if kind == Kind::Mnt => self.enter_mounts(pid, id, around)?,
                    None => {
                        let call = call!("unshare", SYS_unshare, kind.flag());
                        self.get(pid)?.run(around.tape, &[call])?;
                    }
                    Some(member) => {
                        let namespace = self.open(member, kind)?;
                        let skeleton = self.get(pid)?;
                        enter(
                            skeleton,
                            &namespace,
                            kind,
                            around.tape,
                            around.channel,
                            around.channel.number,
                        )?;
                    }
                }
                *number(&mut self.get(pid)?.namespaces, kind) = id;
            }
        }
        Ok(())
    }

    /// Mount namespaces are made by the runtime. Whoever enters one is at its root directory.
    fn enter_mounts(&mut self, pid: Pid, id: u64, around: &Surroundings<'_>) -> Result<(), TargetError> {
        let nested = (id != 0).then(|| around.root.nested(pid, id)).transpose()?;
        let own;
        let (namespace, root) = if let Some(nested) = &nested {
            (nested.namespace.as_fd(), nested.root.as_fd())
        } else {
            own = self.open(self.root, Kind::Mnt)?;
            (own.as_fd(), around.root.root())
        };
        let Surroundings { tape, channel, .. } = *around;
        let skeleton = self.get(pid)?;
        let landed = channel.plant(&mut skeleton.leader, tape, channel.number, &[namespace, root])?;
        let [namespace, root] = landed[..] else {
            return Err(lost(pid, "a mount namespace did not reach it"));
        };
        let calls = [
            call!("setns", SYS_setns, namespace, Kind::Mnt.flag()),
            call!("fchdir", SYS_fchdir, root),
            // What the runtime keeps at hand may lie on top of the root directory.
            call!("chroot", SYS_chroot, Block::text(".")),
            call!("close", SYS_close, namespace),
            call!("close", SYS_close, root),
        ];
        skeleton.run(tape, &calls)?;
        skeleton.entered = nested;
        Ok(())
    }

    /// Has a process make another one in a pid namespace below its own, which it sees through afterwards as before.
    ///
    /// # Errors
    /// As [`Tree::enter_namespaces`].
    pub(super) fn clone_below(
        &mut self,
        maker: Pid,
        space: u64,
        clone: Call,
        around: &Surroundings<'_>,
    ) -> Result<Option<Stopped>, TargetError> {
        let Surroundings { tape, channel, .. } = *around;
        let (below, own) = (self.init(space, maker)?, self.open(maker, Kind::Pid)?);
        let maker = self.get(maker)?;
        enter(maker, &below, Kind::Pid, tape, channel, channel.number)?;
        let mut ran = maker.run(tape, &[clone])?;
        enter(maker, &own, Kind::Pid, tape, channel, channel.number)?;
        Ok(ran.made.pop())
    }

    /// The pid namespaces below the container's, by their numbers.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub(super) fn pid_namespaces(&self) -> Result<BTreeMap<u64, OwnedFd>, TargetError> {
        let inits = self.skeletons.values().filter(|skeleton| skeleton.node.place.is_init());
        inits.map(|init| Ok((init.node.place.space, self.open(init.node.pid, Kind::Pid)?))).collect()
    }

    /// The pid namespace of this number; `for_whom` is to enter it.
    fn init(&self, space: u64, for_whom: Pid) -> Result<OwnedFd, TargetError> {
        let mut all = self.skeletons.values();
        let init = all.find(|skeleton| skeleton.node.place.space == space);
        let init = init.ok_or_else(|| lost(for_whom, "a pid namespace below its own does not exist"))?;
        self.open(init.node.pid, Kind::Pid)
    }

    fn open(&self, pid: Pid, kind: Kind) -> Result<OwnedFd, TargetError> {
        let host = self.skeletons.get(&pid).map_or(0, |skeleton| skeleton.host);
        ns::open(host, kind)
            .map_err(TargetError::errno(format!("open the {} namespace of pid {pid}", kind.name())))
    }

    /// A process that is in a namespace.
    pub(super) fn member(&self, kind: Kind, id: u64) -> Option<Pid> {
        if id == 0 {
            return Some(self.root);
        }
        let mut all = self.skeletons.values();
        all.find(|skeleton| *number(&mut { skeleton.namespaces }, kind) == id).map(|found| found.node.pid)
    }

    /// Gives namespaces what they hold.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub(super) fn fill_namespaces(&self, namespaces: &[Namespace]) -> Result<(), TargetError> {
        for Namespace { id, contents } in namespaces {
            let kind = match contents {
                Contents::Uts { .. } => Kind::Uts,
                Contents::Ipc { .. } => Kind::Ipc,
            };
            let nobody = || TargetError::Image(format!("nobody is in {} namespace {id}", kind.name()));
            let member = self.member(kind, *id).filter(|_| *id != 0).ok_or_else(nobody)?;
            let namespace = self.open(member, kind)?;
            ns::within(namespace.as_fd(), kind, || fill(contents))
                .map_err(TargetError::errno("enter a nested namespace"))??;
        }
        Ok(())
    }
}

impl Restorer<'_> {
    /// Processes whose children are born into another pid namespace than their own. Threads cannot be made any more then.
    pub(crate) fn children_namespaces(&mut self) -> Result<(), TargetError> {
        let image = self.image;
        for shape in &image.shape.processes {
            let space = shape.namespaces.pid_for_children;
            let process = image.processes.iter().find(|process| process.pid == shape.pid);
            let Some(process) = process.filter(|_| space != 0) else { continue };
            if space == Nested::NEW {
                let call = call!("unshare", SYS_unshare, Kind::Pid.flag());
                self.tree.get(shape.pid)?.run(self.tape, &[call])?;
                continue;
            }
            let namespace = self.tree.init(space, shape.pid)?;
            let at = fds::plan(&process.fds).channel;
            enter(self.tree.get(shape.pid)?, &namespace, Kind::Pid, self.tape, self.channel, at)?;
        }
        Ok(())
    }
}

/// Has a skeleton enter a namespace. `at`: its number of the channel.
fn enter(
    skeleton: &mut Skeleton,
    namespace: &OwnedFd,
    kind: Kind,
    tape: &TargetTape,
    channel: &Channel,
    at: i32,
) -> Result<(), TargetError> {
    let pid = skeleton.node.pid;
    let landed = channel.plant(&mut skeleton.leader, tape, at, &[namespace.as_fd()])?;
    let fd = *landed.first().ok_or_else(|| lost(pid, "a namespace did not reach it"))?;
    let calls = [call!("setns", SYS_setns, fd, kind.flag()), call!("close", SYS_close, fd)];
    skeleton.run(tape, &calls).map(drop)
}

/// Sets what this thread's namespace holds.
fn fill(contents: &Contents) -> Result<(), TargetError> {
    match contents {
        Contents::Uts { host, domain } => {
            let names = ns::set_hostname(OsStr::from_bytes(host))
                .and_then(|()| ns::set_domainname(OsStr::from_bytes(domain)));
            names.map_err(TargetError::errno("set the names of a nested UTS namespace"))
        }
        Contents::Ipc { settings } => settings::write(settings),
    }
}
