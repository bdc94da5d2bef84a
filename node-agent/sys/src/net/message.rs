//! Netlink messages: building and reading.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const DUMP: u16 = 0x300;
/// NLM_F_REPLACE.
pub const REPLACE: u16 = 0x100;
/// NLM_F_EXCL.
pub const EXCLUSIVE: u16 = 0x200;
/// NLM_F_CREATE.
pub const CREATE: u16 = 0x400;
/// NLM_F_APPEND.
pub const APPEND: u16 = 0x800;

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
const _: () = assert!(size_of::<libc::nlmsghdr>() == HEADER);

/// A request under construction, or prepared to be sent (again and again).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    kind: u16,
    flags: u16,
    payload: Vec<u8>,
}

impl Message {
    /// Begins a message of type `kind` (RTM_*), with flags such as [`CREATE`] and the family's header.
    #[must_use]
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut message = Self { kind, flags, payload: Vec::with_capacity(256) };
        message.raw(header);
        message
    }

    /// Appends bytes and pads to 4.
    fn raw(&mut self, bytes: &[u8]) {
        self.payload.extend_from_slice(bytes);
        self.payload.resize(self.payload.len().next_multiple_of(4), 0);
    }

    /// Appends an attribute. Data beyond 65531 bytes does not fit one and is cut.
    pub fn attr(&mut self, kind: u16, data: &[u8]) -> &mut Self {
        let data = &data[..data.len().min(65531)];
        let len = u16::try_from(data.len() + 4).unwrap_or(u16::MAX);
        self.payload.extend_from_slice(&len.to_ne_bytes());
        self.payload.extend_from_slice(&kind.to_ne_bytes());
        self.raw(data);
        self
    }

    /// Appends a number.
    pub fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends a NUL-terminated string.
    pub fn attr_str(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Appends an address.
    pub fn attr_ip(&mut self, kind: u16, ip: IpAddr) -> &mut Self {
        match ip {
            IpAddr::V4(ip) => self.attr(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attr(kind, &ip.octets()),
        }
    }

    /// Appends an attribute that holds what `fill` appends.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.nest_after(kind, &[], fill)
    }

    /// As [`Message::nest`], with a structure before the nested attributes.
    pub fn nest_after(&mut self, kind: u16, header: &[u8], fill: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self { kind: 0, flags: 0, payload: Vec::new() };
        inner.raw(header);
        fill(&mut inner);
        self.attr(kind, &inner.payload)
    }

    /// The bytes to send.
    pub(super) fn finish(&self, flags: u16, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(HEADER + self.payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend_from_slice(&len.to_ne_bytes());
        bytes.extend_from_slice(&self.kind.to_ne_bytes());
        bytes.extend_from_slice(&(self.flags | flags).to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// What a netlink header says.
pub(super) struct Head {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
}

/// Splits the first message off: header, payload, rest.
pub(super) fn split(bytes: &[u8]) -> Option<(Head, &[u8], &[u8])> {
    let len = usize::try_from(number(bytes, 0)?).ok()?;
    let payload = bytes.get(HEADER..len)?;
    let head = Head { kind: short(bytes, 4)?, flags: short(bytes, 6)?, sequence: number(bytes, 8)? };
    Some((head, payload, bytes.get(len.next_multiple_of(4)..).unwrap_or(&[])))
}

/// The 16-bit number at an offset.
#[must_use]
pub fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The 32-bit number at an offset.
#[must_use]
pub fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A NUL-terminated string.
#[must_use]
pub fn string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An address of 4 or 16 bytes.
#[must_use]
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| Ipv6Addr::from(v6).into())
}

/// The attributes in a run of bytes: (kind without its flag bits, data).
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// Those behind a family header of `header` bytes.
    #[must_use]
    pub fn after(payload: &'a [u8], header: usize) -> Self {
        Self(payload.get(header..).unwrap_or(&[]))
    }

    /// The first of a kind.
    #[must_use]
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, data)| (found == kind).then_some(data))
    }

    /// The first of a kind, as a number.
    #[must_use]
    pub fn find_u32(self, kind: u16) -> Option<u32> {
        number(self.find(kind)?, 0)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(short(self.0, 0)?);
        let kind = short(self.0, 2)? & 0x3fff;
        let data = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, data))
    }
}

/// AF_INET or AF_INET6, as the family headers have it.
pub(super) fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 2 } else { 10 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_reads_back() {
        let mut message = Message::new(16, CREATE, &[1, 2, 3, 4]);
        message.attr_str(3, "eth0").nest(18, |inner| {
            inner.attr_u32(1, 7).attr(2, &[9]);
        });
        let bytes = message.finish(REQUEST, 5);
        let (head, payload, rest) = split(&bytes).unwrap();
        assert_eq!((head.kind, head.flags, head.sequence), (16, CREATE | REQUEST, 5));
        assert!(rest.is_empty());
        let attributes = Attributes::after(payload, 4);
        assert_eq!(string(attributes.find(3).unwrap()), "eth0");
        let inner = Attributes(attributes.find(18).unwrap());
        assert_eq!(inner.find_u32(1), Some(7));
        assert_eq!(inner.find(2), Some(&[9][..]));
    }

    #[test]
    fn broken_lengths_end_the_walk() {
        assert!(Attributes(&[3, 0, 1, 0]).next().is_none());
        assert!(Attributes(&[200, 0, 1, 0, 1]).next().is_none());
        assert!(split(&[255; 15]).is_none());
        assert!(split(&[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_none());
    }
}
