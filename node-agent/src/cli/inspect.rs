//! `inspect`: what is in a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use image::files::FileKind;
use serde_json::{Value, json};

use super::archive::Archive;
use super::{Format, answer, complain};

pub(super) fn main(dir: &Path, format: Format) -> ExitCode {
    match Archive::open(dir).map(Contents) {
        Ok(contents) => {
            match format {
                Format::Json => answer(&contents.json().to_string()),
                Format::Text => contents.text(),
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

struct Contents(Archive);

impl Contents {
    fn processes(&self) -> Vec<Value> {
        let shapes = self.0.image.shape.processes.iter();
        shapes
            .map(|shape| {
                let state = self.0.image.processes.iter().find(|state| state.pid == shape.pid);
                let name = state.and_then(|state| state.threads.first()).map(|leader| leader.comm.clone());
                json!({
                    "pid": shape.pid,
                    "ppid": shape.ppid,
                    "name": String::from_utf8_lossy(&name.unwrap_or_default()),
                    "exe": shape.mm.exe.path,
                    "zombie": shape.zombie.is_some(),
                    "threads": state.map_or(0, |state| state.threads.len()),
                    "descriptors": state.map_or(0, |state| state.fds.len()),
                    "mappings": shape.mm.vmas.len(),
                    "mapped_bytes": shape.mm.vmas.iter().map(image::shape::Vma::len).sum::<u64>(),
                })
            })
            .collect()
    }

    fn files(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for file in &self.0.image.files.open {
            *counts.entry(kind(&file.kind)).or_default() += 1;
        }
        counts
    }

    fn json(&self) -> Value {
        json!({
            "kernel": self.0.image.host.kernel_release,
            "vdso_hash": format!("{:016x}", self.0.image.host.vdso_hash),
            "xsave_size": self.0.image.host.xsave_size,
            "namespaces": self.0.description.namespaces,
            "passes": self.0.passes,
            "pages": self.0.data_pages,
            "zero_pages": self.0.zero_pages,
            "processes": self.processes(),
            "files": self.files(),
            "shared_memory": self.0.image.shape.objects.len(),
            "deleted_files": self.0.image.files.ghosts.len(),
        })
    }

    fn text(&self) {
        let shared = "the host's".to_owned();
        let own = self.0.description.namespaces.join(", ");
        answer(&format!("kernel      {}", self.0.image.host.kernel_release));
        answer(&format!("namespaces  {}", if own.is_empty() { shared } else { own }));
        answer(&format!("memory      {} pages with content, {} zero", self.0.data_pages, self.0.zero_pages));
        for process in self.processes() {
            answer(&format!(
                "process     {} {} ({} threads, {} descriptors, {} mappings){}",
                process["pid"],
                process["name"].as_str().unwrap_or_default(),
                process["threads"],
                process["descriptors"],
                process["mappings"],
                if process["zombie"] == true { ", zombie" } else { "" }
            ));
        }
        for (kind, count) in self.files() {
            answer(&format!("open        {count} {kind}"));
        }
    }
}

fn kind(kind: &FileKind) -> &'static str {
    match kind {
        FileKind::Regular { directory: true, .. } => "directory",
        FileKind::Regular { .. } => "file",
        FileKind::Device { .. } => "device",
        FileKind::Pseudo { .. } => "pseudo file",
        FileKind::PosixQueue { .. } => "POSIX message queue",
        FileKind::External { .. } => "external",
        FileKind::Pipe { .. } => "pipe end",
        FileKind::Terminal { .. } | FileKind::HungUp { .. } => "terminal",
        FileKind::EventFd { .. } => "eventfd",
        FileKind::TimerFd { .. } => "timerfd",
        FileKind::SignalFd { .. } => "signalfd",
        FileKind::Epoll { .. } => "epoll",
        FileKind::Memfd { .. } => "memfd",
        FileKind::PidFd { .. } => "pidfd",
        FileKind::Inotify { .. } => "inotify",
        FileKind::Unix(_) => "unix socket",
        FileKind::Tcp(_) => "tcp socket",
        FileKind::Udp(_) => "udp socket",
        FileKind::Netlink(_) => "netlink socket",
        FileKind::Raw(_) => "raw socket",
        FileKind::Packet(_) => "packet socket",
    }
}
