//! The bulk streams of a source session.

use std::sync::Arc;

use image::packed::Codec;

use super::failure::Failure;
use super::source::Session;
use crate::transfer::bulk::{BulkSender, Terms};
use crate::transfer::message::Purpose;
use crate::transfer::stream::TlsStream;

impl Session {
    /// How many bulk streams it opens: a limit of bandwidth is kept by one better than by several.
    pub(super) fn streams(&self) -> u32 {
        if self.limits.bandwidth > 0 { 1 } else { self.agent.streams }
    }

    pub(super) fn open_streams(&mut self, count: u32, codecs: Vec<Codec>) -> Result<(), Failure> {
        let terms = Terms {
            bandwidth: self.limits.bandwidth,
            budget: Arc::clone(&self.agent.budget),
            compression: self.limits.compression,
            codecs,
        };
        let (stream, sequence) = self.dial_bulk(0)?;
        let cancel = Arc::clone(&self.cancel);
        let mut bulk = BulkSender::new(stream, sequence, terms, move || cancel.is_cancelled());
        for number in 1..count {
            let (stream, sequence) = self.dial_bulk(number)?;
            bulk.add(stream, sequence).map_err(Failure::Thread)?;
        }
        self.bulk = Some(bulk);
        Ok(())
    }

    fn dial_bulk(&self, number: u32) -> Result<(TlsStream, u64), Failure> {
        let (reader, sequence) = self.dial(Purpose::Bulk(number))?.into_parts();
        let stream = reader.into_inner();
        stream.set_bulk().map_err(Failure::Bulk)?;
        Ok((stream, sequence))
    }

    /// Tells how many bytes each bulk stream has carried, where there are several.
    pub(super) fn tell_streams(&self) {
        let sent = self.bulk.as_ref().map(BulkSender::sent_by_stream).unwrap_or_default();
        if sent.len() > 1 {
            let sent: Vec<String> = sent.iter().map(u64::to_string).collect();
            self.publish.event(format!("bytes on {} bulk streams: {}", sent.len(), sent.join(", ")));
        }
    }
}
