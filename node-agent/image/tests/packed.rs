//! Packed frames: what goes in comes out, and nothing else does harm.

#![expect(clippy::unwrap_used, reason = "a test may")]

use image::frame::{FrameKind, MAX_BULK_BODY};
use image::packed::{Codec, PackedError, Packer, Unpacker};
use proptest::prelude::*;

fn codec() -> impl Strategy<Value = Codec> {
    prop::sample::select(Codec::ALL.to_vec())
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    // From all alike to all different.
    (1u16..256, prop::collection::vec(any::<u8>(), 1..20_000)).prop_map(|(modulus, bytes)| {
        bytes.into_iter().map(|byte| u8::try_from(u16::from(byte) % modulus).unwrap()).collect()
    })
}

proptest! {
    #[test]
    fn what_is_packed_is_smaller_and_comes_out_again(codec in codec(), body in body(), cut in 0usize..20_000) {
        let (first, second) = body.split_at(cut.min(body.len()));
        let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
        for kind in [FrameKind::Pages, FrameKind::Files] {
            if let Some(packed) = packer.pack(codec, kind, &[first, second]).unwrap() {
                prop_assert!(packed.len() < body.len());
                prop_assert_eq!(unpacker.unpack(packed).unwrap(), (kind, &body[..]));
            }
        }
    }

    #[test]
    fn noise_is_refused_or_within_the_limit(bytes in prop::collection::vec(any::<u8>(), 0..300), codec in 0u8..4, kind in 0u8..8) {
        let mut bytes = bytes;
        if bytes.len() > 6 {
            (bytes[0], bytes[1]) = (codec, kind);
            // A length that a small body may well have.
            bytes[4..6].fill(0);
        }
        if let Ok((kind, body)) = Unpacker::default().unpack(&bytes) {
            prop_assert!(matches!(kind, FrameKind::Pages | FrameKind::Files));
            prop_assert!(body.len() <= MAX_BULK_BODY);
        }
    }

    #[test]
    fn a_damaged_body_is_refused_or_of_its_length(codec in codec(), body in body(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut packer = Packer::default();
        let Some(packed) = packer.pack(codec, FrameKind::Pages, &[&body]).unwrap() else { return Ok(()) };
        let mut damaged = packed.to_vec();
        let at = at.index(damaged.len());
        damaged[at] ^= 1 << bit;
        if let Ok((_, out)) = Unpacker::default().unpack(&damaged) {
            let length = u32::from_le_bytes(damaged[2..6].try_into().unwrap());
            prop_assert_eq!(out.len(), length as usize);
        }
        let packed = packed[..packed.len() - 1].to_vec();
        prop_assert!(Unpacker::default().unpack(&packed).is_err(), "cut short");
    }
}

#[test]
fn the_limit_holds_before_anything_is_allocated() {
    let mut bomb = vec![Codec::Zstd as u8, FrameKind::Pages as u8];
    bomb.extend_from_slice(&u32::MAX.to_le_bytes());
    bomb.extend_from_slice(&zstd_of_zeros(64 << 20));
    let mut unpacker = Unpacker::default();
    assert!(matches!(unpacker.unpack(&bomb), Err(PackedError::TooLarge(_))));
    assert_eq!(format!("{unpacker:?}"), "Unpacker { buffer: 0, .. }");
    // A header that lies about what is inside.
    bomb[2..6].copy_from_slice(&4096u32.to_le_bytes());
    assert!(matches!(unpacker.unpack(&bomb), Err(PackedError::Damaged)));
    assert_eq!(format!("{unpacker:?}"), "Unpacker { buffer: 4096, .. }");
}

fn zstd_of_zeros(bytes: usize) -> Vec<u8> {
    zstd::bulk::compress(&vec![0; bytes], 1).unwrap()
}

#[test]
fn only_bulk_frames_are_packed() {
    let mut packer = Packer::default();
    for kind in [FrameKind::Mark, FrameKind::Message, FrameKind::State, FrameKind::Packed] {
        packer.pack(Codec::Lz4, kind, &[&[0; 100]]).unwrap_err();
    }
    packer.pack(Codec::Lz4, FrameKind::Pages, &[&vec![0; MAX_BULK_BODY + 1]]).unwrap_err();
}
