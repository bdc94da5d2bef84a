//! One round of a source session: pages and files, side by side on the bulk streams.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use engine::source::{RoundStats, Source, SourceError};
use engine::{PageSink, account};
use image::pages::Batch;
use image::shape::{Backing, Shape};

use super::failure::Failure;
use super::ports::{FileRound, FileSink, FileSource, PortError};
use super::source::{Session, bulk_end, no_engine, no_link};
use crate::transfer::bulk::BulkSender;
use crate::transfer::message::PeerMessage;

/// How a round is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// While the container runs.
    Running,
    /// After the freeze: nothing is left to send afterwards.
    Frozen,
}

/// What a round sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) pages: RoundStats,
    pub(super) files: FileRound,
}

impl Session {
    /// Sends the shape if it changed, then pages and files of one round. The target is not waited for.
    pub(super) fn copy_round(&mut self, when: When) -> Result<Sent, Failure> {
        let shape = self.engine.as_mut().ok_or_else(no_engine)?.shape()?;
        // The target maps the files that a shape names: it needs them first.
        let mut files = FileRound::default();
        let beside = match &self.shape {
            None => {
                files = self.ahead(&shape)?;
                true
            }
            Some(known) if named(known) == named(&shape) => true,
            Some(_) => {
                files = self.file_round(when)?;
                false
            }
        };
        account::lap("last-pages.shape");
        let template = if self.shape.is_none() { self.send_template()? } else { None };
        self.send_shape(shape)?;
        if template.is_some() {
            self.await_shape()?;
        }
        account::lap("last-pages.send-shape");
        if when == When::Running {
            self.send_ahead()?;
            self.send_groups()?;
        }
        let (index, generation) = (self.round, self.generation());
        let (Some(bulk), Some(engine), Some(source)) =
            (self.bulk.as_mut(), self.engine.as_mut(), self.files.as_mut())
        else {
            return Err(no_link());
        };
        bulk.begin(index, generation).map_err(Failure::Bulk)?;
        let (pages, beside) = if beside {
            let (pages, files) = side_by_side(bulk, engine, &mut **source, when);
            (pages, Some(files))
        } else {
            (send_pages(engine, bulk, when), None)
        };
        // A broken stream is the target's way to say that it gave up: its message says why.
        let pages = pages.map_err(|error| self.why(error.into()))?.and(&template.unwrap_or_default());
        if let Some(sent) = beside {
            let sent = sent.map_err(|error| self.why(error.into()))?;
            files.entries += sent.entries;
            files.bytes += sent.bytes;
        }
        bulk_end(&mut self.bulk, index).map_err(|error| self.why(error))?;
        self.round += 1;
        Ok(Sent { pages, files })
    }

    /// The files that are mapped, so that skeletons can map them while all others travel.
    fn ahead(&mut self, shape: &Shape) -> Result<FileRound, Failure> {
        let paths: Vec<PathBuf> = named(shape).into_iter().map(|(path, ..)| PathBuf::from(path)).collect();
        let sent = self.lone_file_round(|files, sink| files.ahead(&paths, sink))?;
        self.end_round_zero()?;
        Ok(sent)
    }

    /// Sends what changed in the files, as a round of its own if anything did. The target applies it before
    /// it looks at any later shape.
    fn file_round(&mut self, when: When) -> Result<FileRound, Failure> {
        self.lone_file_round(|files, sink| changes(files, sink, when))
    }

    fn lone_file_round(
        &mut self,
        send: impl FnOnce(&mut dyn FileSource, &mut dyn FileSink) -> Result<FileRound, PortError>,
    ) -> Result<FileRound, Failure> {
        let (Some(files), Some(bulk)) = (self.files.as_mut(), self.bulk.as_mut()) else {
            return Err(no_link());
        };
        let index = self.round;
        let mut sink = LazyRound { bulk, index, begun: false };
        let sent = send(&mut **files, &mut sink);
        let begun = sink.begun;
        let sent = sent.map_err(|error| self.why(error.into()))?;
        if begun {
            bulk_end(&mut self.bulk, index)?;
            self.send(&PeerMessage::RoundEnd { index })?;
            self.round += 1;
        }
        Ok(sent)
    }

    /// Round 0 is that of the files that come ahead, even when there is none to send.
    fn end_round_zero(&mut self) -> Result<(), Failure> {
        if self.round == 0 {
            let bulk = self.bulk.as_mut().ok_or_else(no_link)?;
            bulk.begin(0, 0).and_then(|()| bulk.end(0)).map_err(Failure::Bulk)?;
            self.send(&PeerMessage::RoundEnd { index: 0 })?;
            self.round = 1;
        }
        Ok(())
    }

    /// Tells what can be prepared ahead, if it is something else than before.
    fn send_ahead(&mut self) -> Result<(), Failure> {
        let ahead = self.engine.as_ref().ok_or_else(no_engine)?.ahead()?;
        if self.told_ahead != ahead {
            self.send(&PeerMessage::Ahead(ahead.clone()))?;
            self.told_ahead = ahead;
        }
        Ok(())
    }

    /// Sends what the processes share, in a round of its own, before the first shape: the target has them begin with it.
    fn send_template(&mut self) -> Result<Option<RoundStats>, Failure> {
        let Some(template) = self.engine.as_mut().ok_or_else(no_engine)?.template()? else {
            return Ok(None);
        };
        self.tell_shape(template)?;
        let (index, generation) = (self.round, self.generation());
        let (Some(bulk), Some(engine)) = (self.bulk.as_mut(), self.engine.as_mut()) else {
            return Err(no_link());
        };
        bulk.begin(index, generation).map_err(Failure::Bulk)?;
        let sent = engine.template_pages(bulk).map_err(|error| self.why(error.into()))?;
        bulk_end(&mut self.bulk, index).map_err(|error| self.why(error))?;
        self.send(&PeerMessage::RoundEnd { index })?;
        self.round += 1;
        let pages = sent.pages;
        self.publish.event(format!("{pages} pages that processes share as copy-on-write go once for all"));
        Ok(Some(sent))
    }

    /// Waits until the target has made all processes with the template: a bulk stream that is not read for so long would
    /// count as lost. The round has nothing in it.
    fn await_shape(&mut self) -> Result<(), Failure> {
        let (index, generation) = (self.round, self.generation());
        let bulk = self.bulk.as_mut().ok_or_else(no_link)?;
        bulk.begin(index, generation).and_then(|()| bulk.end(index)).map_err(Failure::Bulk)?;
        self.send(&PeerMessage::RoundEnd { index })?;
        self.round += 1;
        self.await_round(index)
    }

    /// Sends the shape if it is not the one that the target has.
    fn send_shape(&mut self, shape: Shape) -> Result<(), Failure> {
        if self.shape.as_ref() == Some(&shape) {
            return Ok(());
        }
        self.tell_shape(shape.clone())?;
        self.shape = Some(shape);
        Ok(())
    }

    fn tell_shape(&mut self, shape: Shape) -> Result<(), Failure> {
        self.generation += 1;
        let generation = self.generation;
        self.send(&PeerMessage::Shape { generation, shape })
    }
}

/// The files that a target must have to build this shape: path, size and modification time. What the container can
/// write through a shared mapping is mapped whatever its times are. Of a deleted file it needs the directory.
fn named(shape: &Shape) -> BTreeSet<(&str, u64, i64)> {
    let of_ghosts = shape.ghosts.iter().filter_map(|ghost| ghost.path.rsplit_once('/'));
    let directories = of_ghosts.map(|(directory, _)| (directory, 0, 0));
    let mut found: BTreeSet<_> = directories.filter(|(directory, ..)| !directory.is_empty()).collect();
    for process in &shape.processes {
        let exe = &process.mm.exe;
        // A zombie has none.
        if exe.ghost.is_none() && !exe.path.is_empty() {
            found.insert((exe.path.as_str(), exe.size, exe.mtime_ns));
        }
        for vma in &process.mm.vmas {
            let Backing::File { file, shared, may_write, .. } = &vma.backing else { continue };
            if file.ghost.is_none() {
                let changes = *shared && *may_write;
                let (size, mtime_ns) = if changes { (0, 0) } else { (file.size, file.mtime_ns) };
                found.insert((file.path.as_str(), size, mtime_ns));
            }
        }
    }
    found
}

fn changes(files: &mut dyn FileSource, sink: &mut dyn FileSink, when: When) -> Result<FileRound, PortError> {
    match when {
        When::Running => files.round(sink),
        When::Frozen => files.last(sink),
    }
}

fn send_pages(engine: &mut Source, sink: &mut dyn PageSink, when: When) -> Result<RoundStats, SourceError> {
    match when {
        When::Running => engine.round(sink),
        When::Frozen => engine.last_pages(sink),
    }
}

/// Pages on this thread, which the engine is bound to, and files on another.
fn side_by_side(
    bulk: &mut BulkSender,
    engine: &mut Source,
    source: &mut dyn FileSource,
    when: When,
) -> (Result<RoundStats, SourceError>, Result<FileRound, PortError>) {
    let shared = Mutex::new(Some(bulk));
    std::thread::scope(|scope| {
        let spawned = std::thread::Builder::new()
            .name("files".to_owned())
            .spawn_scoped(scope, || changes(source, &mut Half(&shared), when));
        account::lap("last-pages.begin");
        let pages = send_pages(engine, &mut Half(&shared), when);
        account::lap("last-pages.pages");
        if pages.is_err() {
            // Nothing more is to be sent of the files either.
            *shared.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        let files = match spawned.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(files)) => files,
            Ok(Err(_)) => Err(PortError::failed("send files", "the thread that did it panicked")),
            Err(error) => Err(PortError::failed("start a thread for files", error)),
        };
        account::lap("last-pages.files");
        (pages, files)
    })
}

/// One of two that share the stream, batch by batch.
struct Half<'a, 'b>(&'a Mutex<Option<&'b mut BulkSender>>);

impl Half<'_, '_> {
    fn with(&self, send: impl FnOnce(&mut BulkSender) -> io::Result<()>) -> io::Result<()> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(bulk) => send(bulk),
            None => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the round has failed")),
        }
    }
}

impl PageSink for Half<'_, '_> {
    fn batch(&mut self, batch: &Batch<'_>) -> io::Result<()> {
        self.with(|bulk| PageSink::batch(bulk, batch))
    }
}

impl FileSink for Half<'_, '_> {
    fn batch(&mut self, batch: &[u8]) -> io::Result<()> {
        self.with(|bulk| FileSink::batch(bulk, batch))
    }
}

/// Begins its round with the first batch, so that a round with nothing in it costs nothing.
struct LazyRound<'a> {
    bulk: &'a mut BulkSender,
    index: u32,
    begun: bool,
}

impl FileSink for LazyRound<'_> {
    fn batch(&mut self, batch: &[u8]) -> io::Result<()> {
        if !self.begun {
            self.bulk.begin(self.index, 0)?;
            self.begun = true;
        }
        FileSink::batch(self.bulk, batch)
    }
}
