//! One entry of a kernel table: a family header and attributes, in the kernel's own bytes.

use serde::{Deserialize, Serialize};
use sys::net::message::{Attributes, Message, number};

/// An entry. Two are equal when every byte that is kept of them is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Item {
    /// The family's structure.
    pub header: Vec<u8>,
    /// Kind without flag bits, and content, in the kernel's order.
    pub attributes: Vec<(u16, Vec<u8>)>,
}

impl Item {
    /// Takes a listed entry with a structure of `header` bytes apart.
    #[must_use]
    pub fn parse(payload: &[u8], header: usize) -> Self {
        Self {
            header: payload.get(..header).unwrap_or(payload).to_vec(),
            attributes: Attributes::after(payload, header)
                .map(|(kind, data)| (kind, data.to_vec()))
                .collect(),
        }
    }

    /// The first attribute of a kind.
    #[must_use]
    pub fn get(&self, kind: u16) -> Option<&[u8]> {
        self.attributes.iter().find(|(found, _)| *found == kind).map(|(_, data)| &data[..])
    }

    /// The first attribute of a kind as a number of the host's order.
    #[must_use]
    pub fn number(&self, kind: u16) -> Option<u32> {
        number(self.get(kind)?, 0)
    }

    /// A number of the host's order in the header; 0 beyond its end.
    #[must_use]
    pub fn header_number(&self, at: usize) -> u32 {
        number(&self.header, at).unwrap_or(0)
    }

    /// Writes a number of the host's order into the header.
    pub fn set_header(&mut self, at: usize, value: u32) {
        if let Some(bytes) = self.header.get_mut(at..at + 4) {
            bytes.copy_from_slice(&value.to_ne_bytes());
        }
    }

    /// Keeps only attributes of these kinds.
    pub fn keep(&mut self, kinds: &[u16]) {
        self.attributes.retain(|(kind, _)| kinds.contains(kind));
    }

    /// Removes attributes of these kinds.
    pub fn without(&mut self, kinds: &[u16]) {
        self.attributes.retain(|(kind, _)| !kinds.contains(kind));
    }

    /// Replaces an attribute, or adds it.
    pub fn set(&mut self, kind: u16, data: Vec<u8>) {
        match self.attributes.iter_mut().find(|(found, _)| *found == kind) {
            Some(place) => place.1 = data,
            None => self.attributes.push((kind, data)),
        }
    }

    /// Appends its attributes to a message that was begun with its header.
    #[must_use]
    pub fn into_message(&self, mut message: Message) -> Message {
        for (kind, data) in &self.attributes {
            message.attr(*kind, data);
        }
        message
    }

    /// Bytes that it takes, about.
    #[must_use]
    pub fn size(&self) -> usize {
        self.header.len() + self.attributes.iter().map(|(_, data)| data.len() + 4).sum::<usize>()
    }
}

/// The nested attributes in an attribute's content.
#[must_use]
pub fn nested(data: &[u8]) -> Vec<(u16, Vec<u8>)> {
    Attributes(data).map(|(kind, data)| (kind, data.to_vec())).collect()
}

/// Attributes as bytes.
#[must_use]
pub fn flat(attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, data) in attributes {
        let length = u16::try_from(data.len() + 4).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}
