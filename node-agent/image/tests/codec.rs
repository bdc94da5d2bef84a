//! Whatever is written is read again, and damaged bytes are an error: never a panic, never another value.

#![expect(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::collections::BTreeSet;

use image::codec::{self, CodecError};
use image::frame::{
    Frame, FrameError, FrameKind, FrameReader, FrameWriter, HEADER_LEN, Header, Limits, MAX_BULK_BODY,
    MAX_STATE_BODY,
};
use image::groups::Groups;
use image::shape::Shape;
use image::state::Image;
use proptest::prelude::*;
use support::{any_value, variants_of};

fn frame(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    let mut writer = FrameWriter::new(Vec::new());
    writer.write(kind, &[body]).unwrap();
    writer.into_inner()
}

fn read_all(bytes: &[u8]) -> Result<Vec<(FrameKind, Vec<u8>)>, FrameError> {
    let mut reader = FrameReader::new(bytes);
    let mut frames = Vec::new();
    while let Some(Frame { kind, body }) = reader.read()? {
        frames.push((kind, body.to_vec()));
    }
    Ok(frames)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn an_image_comes_back_as_it_was(image in any_value::<Image>()) {
        let mut writer = FrameWriter::new(Vec::new());
        codec::write(&mut writer, FrameKind::State, &image).unwrap();
        let bytes = writer.into_inner();
        let back: Image = codec::read(&mut FrameReader::new(bytes.as_slice()), FrameKind::State).unwrap();
        prop_assert_eq!(back, image);
    }

    #[test]
    fn a_shape_comes_back_as_it_was(shape in any_value::<Shape>()) {
        let bytes = codec::encode(&shape).unwrap();
        prop_assert_eq!(codec::decode::<Shape>(&bytes).unwrap(), shape);
    }

    #[test]
    fn groups_come_back_as_they_were(groups in any_value::<Groups>()) {
        let bytes = codec::encode(&groups).unwrap();
        prop_assert_eq!(codec::decode::<Groups>(&bytes).unwrap(), groups);
    }

    #[test]
    fn a_prefix_is_no_value(image in any_value::<Image>(), at in any::<prop::sample::Index>()) {
        let bytes = codec::encode(&image).unwrap();
        prop_assert!(codec::decode::<Image>(&bytes[..at.index(bytes.len())]).is_err());
    }

    #[test]
    fn more_bytes_than_a_value_are_refused(image in any_value::<Image>()) {
        let mut bytes = codec::encode(&image).unwrap();
        bytes.push(0);
        let refused = matches!(codec::decode::<Image>(&bytes), Err(CodecError::Trailing { count: 1, .. }));
        prop_assert!(refused);
    }

    #[test]
    fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = codec::decode::<Image>(&bytes);
        let _ = codec::decode::<Shape>(&bytes);
        let _ = read_all(&bytes);
    }

    #[test]
    fn parts_are_one_body(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6)) {
        let mut writer = FrameWriter::new(Vec::new());
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let written = writer.write(FrameKind::Files, &slices).unwrap();
        let bytes = writer.into_inner();
        prop_assert_eq!(usize::try_from(written).unwrap(), bytes.len());
        prop_assert_eq!(read_all(&bytes).unwrap(), vec![(FrameKind::Files, parts.concat())]);
    }
}

#[test]
fn the_generator_reaches_every_variant_of_an_image() {
    let mut seen = BTreeSet::new();
    for seed in 0..4000 {
        variants_of::<Image>(seed * 2 + 1, &mut seen);
    }
    for variant in [
        "FileKind::Regular",
        "FileKind::Device",
        "FileKind::Pseudo",
        "FileKind::External",
        "FileKind::Pipe",
        "FileKind::EventFd",
        "FileKind::TimerFd",
        "FileKind::SignalFd",
        "FileKind::Epoll",
        "FileKind::Memfd",
        "FileKind::PosixQueue",
        "FileKind::PidFd",
        "FileKind::Inotify",
        "FileKind::Unix",
        "FileKind::Tcp",
        "FileKind::Udp",
        "TcpState::Connected",
        "TcpState::Listen",
        "TcpState::Closed",
        "UnixState::PeerClosed",
        "Backing::Object",
        "Backing::Vvar",
        "ObjectKind::Memfd",
        "Resume::ReissueWith",
        "Resume::RestartBlock",
    ] {
        assert!(seen.contains(variant), "{variant} is never made");
    }
}

#[test]
fn every_bit_of_a_frame_matters() {
    let mut bytes = frame(FrameKind::Message, b"first");
    let mut writer = FrameWriter::new(Vec::new()).at(1);
    writer.write(FrameKind::Mark, &[b"second"]).unwrap();
    bytes.extend(writer.into_inner());
    assert_eq!(read_all(&bytes).unwrap().len(), 2);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(read_all(&damaged).is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn a_stream_may_end_between_frames_only() {
    let mut writer = FrameWriter::new(Vec::new());
    writer.write(FrameKind::Message, &[b"first"]).unwrap();
    let first = writer.get_mut().len();
    writer.write(FrameKind::Message, &[b"second"]).unwrap();
    let bytes = writer.into_inner();
    for cut in 0..bytes.len() {
        let read = read_all(&bytes[..cut]);
        assert_eq!(read.is_ok(), cut == 0 || cut == first, "cut at {cut}");
    }
}

#[test]
fn missing_and_repeated_frames_are_noticed() {
    let first = frame(FrameKind::Message, b"first");
    let mut writer = FrameWriter::new(Vec::new()).at(2);
    writer.write(FrameKind::Message, &[b"third"]).unwrap();
    let third = writer.into_inner();
    for second in [&first, &third] {
        let error = read_all(&[first.as_slice(), second].concat()).unwrap_err();
        assert!(matches!(error, FrameError::Sequence { expected: 1, .. }), "{error}");
    }
}

#[test]
fn the_limits_hold_before_anything_is_allocated() {
    let limits = Limits::default();
    for (kind, most) in [
        (FrameKind::Pages, MAX_BULK_BODY),
        (FrameKind::Files, MAX_BULK_BODY),
        (FrameKind::State, MAX_STATE_BODY),
        (FrameKind::Message, 64 * 1024),
        (FrameKind::Mark, 64 * 1024),
    ] {
        let header =
            |length: usize| Header { kind, sequence: 0, length: length.try_into().unwrap(), checksum: 0 };
        Header::decode(&header(most).encode(), &limits).unwrap();
        let error = Header::decode(&header(most + 1).encode(), &limits).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { .. }), "{error}");
        // And the writer keeps the same limits.
        let body = vec![0; most + 1];
        assert!(matches!(
            FrameWriter::new(Vec::new()).write(kind, &[&body]),
            Err(FrameError::TooLarge { .. })
        ));
    }
}

/// Counts how much a reader asks for at once.
struct Greedy<'a>(&'a [u8], &'a mut usize);

impl std::io::Read for Greedy<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        *self.1 = (*self.1).max(buffer.len());
        std::io::Read::read(&mut self.0, buffer)
    }
}

#[test]
fn a_large_frame_that_never_arrives_costs_little() {
    let header = Header { kind: FrameKind::State, sequence: 0, length: 64 << 20, checksum: 0 }.encode();
    let mut asked = 0;
    assert!(matches!(FrameReader::new(Greedy(&header, &mut asked)).read(), Err(FrameError::Io(_))));
    assert!(asked <= 1 << 20, "{asked} bytes were allocated for a header of {HEADER_LEN}");
}

#[test]
fn zero_and_unknown_kinds_and_versions_are_invalid() {
    let patch = |at: usize, value: u8| {
        let mut bytes: [u8; HEADER_LEN] = frame(FrameKind::Message, b"")[..].try_into().unwrap();
        bytes[at] = value;
        let check = crc32c::crc32c(&bytes[..24]).to_le_bytes();
        bytes[24..].copy_from_slice(&check);
        Header::decode(&bytes, &Limits::default()).unwrap_err()
    };
    assert!(matches!(patch(6, 0), FrameError::Kind(0)));
    assert!(matches!(patch(6, 7), FrameError::Kind(7)));
    assert!(matches!(patch(4, 2), FrameError::Version(2)));
    assert!(matches!(patch(0, b'X'), FrameError::Magic(_)));
    assert!(matches!(patch(7, 1), FrameError::Header));
}

#[test]
fn another_kind_of_frame_is_not_taken_for_a_value() {
    let bytes = frame(FrameKind::Message, &codec::encode(&Shape::default()).unwrap());
    let error =
        codec::read::<_, Shape>(&mut FrameReader::new(bytes.as_slice()), FrameKind::State).unwrap_err();
    assert!(matches!(error, CodecError::Unexpected { found: Some(FrameKind::Message), .. }), "{error}");
    let error = codec::read::<_, Shape>(&mut FrameReader::new(&[][..]), FrameKind::State).unwrap_err();
    assert!(matches!(error, CodecError::Unexpected { found: None, .. }), "{error}");
}
