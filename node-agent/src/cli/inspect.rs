//! `inspect`: what is in a checkpoint.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use image::checkpoint::{CheckpointReader, Item};
use image::files::FileKind;
use image::pages::RunKind;
use image::state::Image;
use serde_json::{Value, json};

use super::description::Description;
use super::{Format, answer, complain};

pub(super) fn main(dir: &Path, format: Format) -> ExitCode {
    match look(dir) {
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

struct Contents {
    description: Description,
    image: Box<Image>,
    data_pages: u64,
    zero_pages: u64,
    rounds: u64,
}

fn look(dir: &Path) -> anyhow::Result<Contents> {
    let description = Description::load(dir)?;
    let path = dir.join("checkpoint");
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut reader = CheckpointReader::new(BufReader::with_capacity(1 << 20, file));
    let (mut data_pages, mut zero_pages, mut rounds, mut image) = (0, 0, 0, None);
    while let Some(item) = reader.next().with_context(|| format!("cannot read {}", path.display()))? {
        match item {
            Item::Shape(_) => rounds += 1,
            Item::Pages(batch) => {
                for run in batch.runs {
                    let pages = u64::from(run.pages);
                    if run.kind == RunKind::Data { data_pages += pages } else { zero_pages += pages }
                }
            }
            Item::EndOfPages => {}
            Item::Image(last) => image = Some(last),
        }
    }
    let image = image.with_context(|| format!("{} ends without an image", path.display()))?;
    Ok(Contents { description, image, data_pages, zero_pages, rounds })
}

impl Contents {
    fn processes(&self) -> Vec<Value> {
        let shapes = self.image.shape.processes.iter();
        shapes
            .map(|shape| {
                let state = self.image.processes.iter().find(|state| state.pid == shape.pid);
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
        for file in &self.image.files.open {
            *counts.entry(kind(&file.kind)).or_default() += 1;
        }
        counts
    }

    fn json(&self) -> Value {
        json!({
            "kernel": self.image.host.kernel_release,
            "vdso_hash": format!("{:016x}", self.image.host.vdso_hash),
            "xsave_size": self.image.host.xsave_size,
            "namespaces": self.description.namespaces,
            "passes": self.rounds,
            "pages": self.data_pages,
            "zero_pages": self.zero_pages,
            "processes": self.processes(),
            "files": self.files(),
            "shared_memory": self.image.shape.objects.len(),
            "deleted_files": self.image.files.ghosts.len(),
        })
    }

    fn text(&self) {
        let shared = "the host's".to_owned();
        let own = self.description.namespaces.join(", ");
        answer(&format!("kernel      {}", self.image.host.kernel_release));
        answer(&format!("namespaces  {}", if own.is_empty() { shared } else { own }));
        answer(&format!("memory      {} pages with content, {} zero", self.data_pages, self.zero_pages));
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
    }
}
