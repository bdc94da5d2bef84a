//! A checkpoint: one stream of frames that holds a whole container.
//!
//! | frames | body |
//! |---|---|
//! | State | a [`Shape`] |
//! | Pages, any number | batches of pages |
//! | Mark | one byte: 1 = another Shape with its pages follows, 2 = the image follows |
//! | ... | |
//! | State | the [`Image`]; the stream ends after it |
//!
//! A shape that follows another replaces it, and its pages replace what was sent before, as in the rounds of
//! a migration.

use std::io::{Read, Write};

use crate::codec::{self, CodecError};
use crate::frame::{FrameError, FrameKind, FrameReader, FrameWriter, MAX_BULK_BODY};
use crate::pages::{self, Batch, BatchError, Run};
use crate::shape::Shape;
use crate::state::Image;

const MORE: u8 = 1;
const LAST: u8 = 2;

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A frame.
    #[error("cannot read or write a frame of the checkpoint")]
    Frame(#[from] FrameError),
    /// A shape or image.
    #[error("cannot read or write the state in the checkpoint")]
    State(#[from] CodecError),
    /// A batch of pages.
    #[error("cannot read or write pages of the checkpoint")]
    Pages(#[from] BatchError),
    /// Frames in an order that makes no checkpoint.
    #[error("the checkpoint is not in order: {0}")]
    Order(&'static str),
}

/// Writes a checkpoint in order.
#[derive(Debug)]
pub struct CheckpointWriter<W> {
    frames: FrameWriter<W>,
    head: Vec<u8>,
    open: bool,
}

impl<W: Write> CheckpointWriter<W> {
    /// Begins a checkpoint.
    pub fn new(inner: W) -> Self {
        Self { frames: FrameWriter::new(inner), head: Vec::new(), open: false }
    }

    /// A shape; the pages that follow belong to it.
    ///
    /// # Errors
    /// When it is too large or the stream breaks.
    pub fn shape(&mut self, shape: &Shape) -> Result<(), CheckpointError> {
        if self.open {
            self.frames.write(FrameKind::Mark, &[&[MORE]])?;
        }
        self.open = true;
        codec::write(&mut self.frames, FrameKind::State, shape)?;
        Ok(())
    }

    /// Pages of the last shape; a large batch becomes several frames.
    ///
    /// # Errors
    /// When a run is invalid or the stream breaks.
    pub fn pages(&mut self, batch: &Batch<'_>) -> Result<(), CheckpointError> {
        let Self { frames, head, .. } = self;
        pages::split(batch, MAX_BULK_BODY, &mut |part| {
            pages::encode_head(part, head)?;
            frames.write(FrameKind::Pages, &[head, part.data])?;
            Ok(())
        })
    }

    /// The image, which ends the checkpoint. Gives the stream back, flushed.
    ///
    /// # Errors
    /// When no shape came before it, it is too large, or the stream breaks.
    pub fn finish(mut self, image: &Image) -> Result<W, CheckpointError> {
        if !self.open {
            return Err(CheckpointError::Order("an image without a shape"));
        }
        self.frames.write(FrameKind::Mark, &[&[LAST]])?;
        codec::write(&mut self.frames, FrameKind::State, image)?;
        Ok(self.frames.into_inner())
    }
}

/// What comes next in a checkpoint.
#[derive(Debug)]
pub enum Item<'a> {
    /// A shape.
    Shape(Box<Shape>),
    /// Pages of the last shape.
    Pages(Batch<'a>),
    /// No more pages of the last shape.
    EndOfPages,
    /// The image; nothing follows.
    Image(Box<Image>),
}

/// Reads a checkpoint in order.
#[derive(Debug)]
pub struct CheckpointReader<R> {
    frames: FrameReader<R>,
    runs: Vec<Run>,
    expect: Expect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Shape,
    Pages,
    Image,
    End,
}

impl<R: Read> CheckpointReader<R> {
    /// Begins to read.
    pub fn new(inner: R) -> Self {
        Self { frames: FrameReader::new(inner), runs: Vec::new(), expect: Expect::Shape }
    }

    /// The next item; `None` after the image.
    ///
    /// # Errors
    /// When the stream is cut short, damaged, or no checkpoint.
    #[expect(clippy::should_implement_trait, reason = "an item borrows from the reader")]
    pub fn next(&mut self) -> Result<Option<Item<'_>>, CheckpointError> {
        match self.expect {
            Expect::End => Ok(None),
            Expect::Shape => {
                let shape = codec::read(&mut self.frames, FrameKind::State)?;
                self.expect = Expect::Pages;
                Ok(Some(Item::Shape(Box::new(shape))))
            }
            Expect::Image => {
                let image = codec::read(&mut self.frames, FrameKind::State)?;
                self.expect = Expect::End;
                Ok(Some(Item::Image(Box::new(image))))
            }
            Expect::Pages => {
                let frame = self.frames.read()?.ok_or(CheckpointError::Order("it ends without an image"))?;
                self.expect = match (frame.kind, frame.body) {
                    (FrameKind::Pages, body) => {
                        return Ok(Some(Item::Pages(pages::decode(body, &mut self.runs)?)));
                    }
                    (FrameKind::Mark, [MORE]) => Expect::Shape,
                    (FrameKind::Mark, [LAST]) => Expect::Image,
                    _ => return Err(CheckpointError::Order("a frame that is neither pages nor a mark")),
                };
                Ok(Some(Item::EndOfPages))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::{Owner, RunKind};
    use crate::shape::MemoryObject;

    fn shape(size: u64) -> Shape {
        let object = MemoryObject { id: 1, size, huge: 0, kind: crate::shape::ObjectKind::SharedAnonymous };
        Shape { objects: vec![object], ..Shape::default() }
    }

    fn written() -> Vec<u8> {
        let mut writer = CheckpointWriter::new(Vec::new());
        writer.shape(&shape(1)).unwrap();
        let runs = [Run { addr: 0x1000, pages: 1, kind: RunKind::Data }];
        writer.pages(&Batch { owner: Owner::Process(7), runs: &runs, data: &[9; 4096] }).unwrap();
        writer.shape(&shape(2)).unwrap();
        writer.finish(&Image { shape: shape(2), ..Image::default() }).unwrap()
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let bytes = written();
        let mut reader = CheckpointReader::new(bytes.as_slice());
        assert!(matches!(reader.next().unwrap(), Some(Item::Shape(s)) if *s == shape(1)));
        assert!(matches!(reader.next().unwrap(), Some(Item::Pages(b)) if b.data == [9; 4096]));
        assert!(matches!(reader.next().unwrap(), Some(Item::EndOfPages)));
        assert!(matches!(reader.next().unwrap(), Some(Item::Shape(s)) if *s == shape(2)));
        assert!(matches!(reader.next().unwrap(), Some(Item::EndOfPages)));
        assert!(matches!(reader.next().unwrap(), Some(Item::Image(i)) if i.shape == shape(2)));
        assert!(reader.next().unwrap().is_none());
    }

    #[test]
    fn every_cut_is_noticed() {
        let bytes = written();
        for len in 0..bytes.len() {
            let mut reader = CheckpointReader::new(&bytes[..len]);
            let complete = loop {
                match reader.next() {
                    Ok(Some(_)) => {}
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            assert!(!complete, "the first {len} of {} bytes pass for a checkpoint", bytes.len());
        }
    }

    #[test]
    fn an_image_alone_is_no_checkpoint() {
        assert!(CheckpointWriter::new(Vec::new()).finish(&Image::default()).is_err());
    }
}
