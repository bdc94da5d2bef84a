//! Checkpoints: a container's [`Source`] into a stream, and a stream into a [`Target`].
//!
//! The same steps as a migration on one host, with a file where the wire is.

use std::io::{self, Read, Write};

use image::checkpoint::{CheckpointError, CheckpointReader, CheckpointWriter, Item};
use image::pages::Batch;
use image::state::Image;
use thiserror::Error;

use crate::PageSink;
use crate::source::{Source, SourceError};
use crate::target::{Externals, RestoreTimes, Target, TargetError};

/// Why a checkpoint could not be taken. The source is as its own error says; [`Source::abort`] gives it back.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The container could not be captured.
    #[error("cannot capture the container")]
    Source(#[from] SourceError),
    /// The stream could not be written.
    #[error("cannot write the checkpoint")]
    Write(#[from] CheckpointError),
}

/// Why a checkpoint could not be restored. The target is to be discarded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The stream could not be read.
    #[error("cannot read the checkpoint")]
    Read(#[from] CheckpointError),
    /// The container could not be rebuilt.
    #[error("cannot rebuild the container")]
    Target(#[from] TargetError),
    /// Its memory could not be filled.
    #[error("cannot fill the container's memory")]
    Memory(#[source] io::Error),
    /// The stream ended before the image.
    #[error("the checkpoint has no image")]
    NoImage,
}

/// Pages into a checkpoint.
struct Pages<'a, W>(&'a mut CheckpointWriter<W>);

impl<W: Write + Send> PageSink for Pages<'_, W> {
    fn batch(&mut self, batch: &Batch<'_>) -> io::Result<()> {
        self.0.pages(batch).map_err(io::Error::other)
    }
}

/// Writes a container. `rounds` pre-copy rounds come before the freeze: each one makes the file longer and
/// the freeze shorter.
///
/// After Ok the container is frozen: [`Source::abort`] lets it run on, [`Source::kill`] ends it.
///
/// # Errors
/// See [`SaveError`].
pub fn save<W: Write + Send>(source: &mut Source, rounds: u32, to: W) -> Result<(W, Image), SaveError> {
    let mut writer = CheckpointWriter::new(to);
    for round in 0..rounds {
        save_shape(source, round == 0, &mut writer)?;
        source.round(&mut Pages(&mut writer))?;
    }
    source.freeze()?;
    save_shape(source, rounds == 0, &mut writer)?;
    source.last_pages(&mut Pages(&mut writer))?;
    let image = source.capture()?;
    let to = writer.finish(&image)?;
    Ok((to, image))
}

/// A shape; before the first one what its processes share.
fn save_shape<W: Write + Send>(
    source: &mut Source,
    first: bool,
    writer: &mut CheckpointWriter<W>,
) -> Result<(), SaveError> {
    let shape = source.shape()?;
    if first && let Some(template) = source.template()? {
        writer.shape(&template)?;
        source.template_pages(&mut Pages(writer))?;
    }
    Ok(writer.shape(&shape)?)
}

/// Reads a container into `target`, which is complete and stopped after Ok: [`Target::ready`] follows.
///
/// # Errors
/// See [`LoadError`].
pub fn load<R: Read>(
    target: &mut Target,
    externals: &mut dyn Externals,
    from: R,
) -> Result<(Image, RestoreTimes), LoadError> {
    let mut reader = CheckpointReader::new(from);
    let writer = target.writer();
    let mut image = None;
    while let Some(item) = reader.next()? {
        match item {
            Item::Shape(shape) => target.reconcile(&shape)?,
            Item::Pages(batch) => writer.apply(&batch).map_err(LoadError::Memory)?,
            Item::EndOfPages => {}
            Item::Image(last) => image = Some(*last),
        }
    }
    let image = image.ok_or(LoadError::NoImage)?;
    let times = target.restore(&image, externals)?;
    Ok((image, times))
}
