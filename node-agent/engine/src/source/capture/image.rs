//! Puts the image together.

use image::state::{HostFacts, Image};

use crate::account;

use super::files::{self, Context};
use super::unix::{Peers, Wanted};
use super::{directories, ghosts, threads};
use crate::proc::links;
use crate::source::SourceError;
use crate::source::failpoint;
use crate::source::findings::Findings;
use crate::source::look::{Looker, tables};
use crate::source::session::{Frozen, refuse};
use crate::source::sockets::{Kind, tcp_state};

/// Everything but the contents of memory.
pub(crate) fn capture(looker: &mut Looker, frozen: &mut Frozen) -> Result<Image, SourceError> {
    let mut findings = Findings::default();
    let mut wanted = Wanted::default();
    for kind in tables(&frozen.look.processes).flat_map(|(_, table)| table.sockets.values()) {
        match kind {
            Kind::Unix(_) => wanted.unix = true,
            Kind::Udp { protocol, .. } => wanted.udp.extend(u8::try_from(*protocol)),
            Kind::Tcp(tcp) => wanted.connecting |= tcp.state == tcp_state::SYN_SENT,
            Kind::Raw { .. } => wanted.raw = true,
            Kind::Packet(_) => wanted.packet = true,
            Kind::Netlink { .. } => {}
        }
    }
    let any = wanted.unix || wanted.connecting || wanted.raw || wanted.packet || !wanted.udp.is_empty();
    let peers = if any { Peers::list_with(looker.spec.root, &wanted)? } else { Peers::default() };
    account::lap("capture.unix-peers");
    let captured = {
        let mut context = Context {
            look: &frozen.look,
            view: &looker.view,
            spec: &looker.spec,
            registry: &mut looker.registry,
            findings: &mut findings,
            in_repair: &mut frozen.in_repair,
            unix: peers,
            groups: &looker.groups,
        };
        files::capture(&mut context)?
    };
    account::lap("capture.files");
    failpoint!("source-capture-files");
    let mut descriptors = captured.tables;
    let mut image = Image {
        host: host_facts(frozen),
        shape: frozen.look.shape.clone(),
        processes: Vec::new(),
        files: captured.files,
        ipc: std::mem::take(&mut looker.sysv.ipc),
        names: None,
        namespaces: std::mem::take(&mut looker.namespaces),
    };
    crate::source::memory::objects::seals(&looker.registry, &looker.view.ids, &mut image.shape);
    for found in files::live(&frozen.look) {
        let (Some(parked), Some((thread_ask, process_ask))) =
            (frozen.parked.get(&found.process.pid), frozen.asks.get(&found.process.pid))
        else {
            return Err(SourceError::ThreadGone { tid: found.process.pid });
        };
        let Some(leader) = parked.first() else {
            return Err(SourceError::ThreadGone { tid: found.process.pid });
        };
        if image.processes.is_empty() && links::namespace(found.process.pid, "uts")? != own_uts()? {
            image.names = leader.outcomes.first().map(|outcome| process_ask.names(outcome));
        }
        let mut process = threads::process(found, leader, process_ask, &looker.view, &mut findings)?;
        for thread in parked {
            let mut known = threads::thread(found, thread, thread_ask, &looker.view.ids, &mut findings)?;
            if let Some(apart) = looker.apart.iter().find(|apart| apart.tid == thread.tid) {
                known.shared = apart.shared;
                if apart.directories {
                    let own = directories::of_thread(found, thread, &looker.view, &mut findings)?;
                    known.directories = Some(own);
                }
                if apart.files {
                    // Whoever shares it has the same.
                    let first = if apart.has_table() { apart.inner } else { apart.shared.files };
                    known.fds = Some(descriptors.get(&first).cloned().unwrap_or_default());
                }
            }
            process.threads.push(known);
        }
        let inner = found.process.inner;
        process.report = frozen.reports.get(&inner).copied().unwrap_or_default();
        process.policies = frozen.policies.remove(&inner).unwrap_or_default();
        process.lock_later = frozen.lock_later.get(&inner).copied().unwrap_or(0);
        process.deleted_cwd = directories::deleted(found, &process.cwd, &looker.view, &mut looker.registry)?;
        process.fds = descriptors.remove(&found.process.inner).unwrap_or_default();
        image.processes.push(process);
    }
    // Working directories.
    ghosts::capture(&looker.registry, &mut image.files.ghosts, &mut findings)?;
    refuse(findings)?;
    account::lap("capture.threads");
    if let Some(thread) = image.processes.first().and_then(|process| process.threads.first()) {
        image.host.xsave_size = u32::try_from(thread.xstate.len()).unwrap_or(0);
    }
    Ok(image)
}

/// The UTS namespace that the agent lives in.
fn own_uts() -> Result<u64, SourceError> {
    let own = i32::try_from(std::process::id()).map_err(|_| SourceError::ThreadGone { tid: 0 })?;
    Ok(links::namespace(own, "uts")?)
}

fn host_facts(frozen: &Frozen) -> HostFacts {
    let (monotonic_ns, boottime_ns, realtime_ns) = frozen.clocks;
    HostFacts {
        kernel_release: nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        vdso_hash: sys::cpu::vdso_hash().unwrap_or(0),
        xsave_size: 0,
        xcr0: sys::cpu::xsave().map_or(0, |xsave| xsave.features),
        monotonic_ns,
        boottime_ns,
        realtime_ns,
    }
}
