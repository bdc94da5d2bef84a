//! Namespaces of processes beside the container's own: made and shared while the source still runs, filled from the
//! image.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use image::Pid;
use image::namespaces::{Contents, Namespace, Nested};
use image::shape::Shape;
use libc::{SYS_close, SYS_pidfd_open, SYS_setns, SYS_unshare};
use sys::ns::{self, Kind};
use sys::tape::target::TargetTape;

use super::error::TargetError;
use super::script::call;
use super::tree::Tree;

const KINDS: [Kind; 2] = [Kind::Uts, Kind::Ipc];

fn number(nested: &mut Nested, kind: Kind) -> &mut u64 {
    if kind == Kind::Uts { &mut nested.uts } else { &mut nested.ipc }
}

impl Tree {
    /// Puts every process into its namespaces. The first one of a namespace makes it, the others enter it. A thread
    /// has those of its maker: threads that were made ahead are ended where something changes.
    ///
    /// # Errors
    /// A [`TargetError`]; the skeletons are lost then.
    pub(super) fn enter_namespaces(&mut self, shape: &Shape, tape: &TargetTape) -> Result<(), TargetError> {
        for process in shape.processes.iter().filter(|process| process.zombie.is_none()) {
            let (pid, mut wanted) = (process.pid, process.namespaces);
            if self.get(pid)?.namespaces == wanted {
                continue;
            }
            self.get(pid)?.set_threads(tape, &[])?;
            for kind in KINDS {
                let id = *number(&mut wanted, kind);
                if *number(&mut self.get(pid)?.namespaces, kind) == id {
                    continue;
                }
                let flag = kind.flag();
                match self.member(kind, id) {
                    None => {
                        self.get(pid)?.run(tape, &[call!("unshare", SYS_unshare, flag)])?;
                    }
                    Some(member) => {
                        let skeleton = self.get(pid)?;
                        let ran = skeleton.run(tape, &[call!("pidfd_open", SYS_pidfd_open, member, 0)])?;
                        let fd = ran.answers.first().map_or(-1, |answer| answer.value);
                        let calls = [call!("setns", SYS_setns, fd, flag), call!("close", SYS_close, fd)];
                        skeleton.run(tape, &calls)?;
                    }
                }
                *number(&mut self.get(pid)?.namespaces, kind) = id;
            }
        }
        Ok(())
    }

    /// A process that is in a namespace.
    fn member(&self, kind: Kind, id: u64) -> Option<Pid> {
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
            let host = self.skeletons.get(&member).map_or(0, |skeleton| skeleton.host);
            let namespace = ns::open(host, kind).map_err(TargetError::errno("open a nested namespace"))?;
            ns::within(namespace.as_fd(), kind, || fill(contents))
                .map_err(TargetError::errno("enter a nested namespace"))??;
        }
        Ok(())
    }
}

/// Sets what this thread's namespace holds.
fn fill(contents: &Contents) -> Result<(), TargetError> {
    match contents {
        Contents::Uts { host, domain } => {
            let names = ns::set_hostname(OsStr::from_bytes(host))
                .and_then(|()| ns::set_domainname(OsStr::from_bytes(domain)));
            names.map_err(TargetError::errno("set the names of a nested UTS namespace"))
        }
        Contents::Ipc { settings } => settings.iter().try_for_each(|(name, value)| {
            let path = format!("/proc/sys/{name}");
            let have = std::fs::read_to_string(&path);
            if have.is_ok_and(|have| have.trim() == value) {
                return Ok(());
            }
            std::fs::write(&path, value)
                .map_err(TargetError::system(format!("set {name} of a nested IPC namespace to {value}")))
        }),
    }
}
