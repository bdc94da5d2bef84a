//! Any bytes as a packed frame; what comes out is within the limit, and packs again.
#![no_main]

use image::frame::MAX_BULK_BODY;
use image::packed::{Codec, Packer, Unpacker};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut unpacker = Unpacker::default();
    if let Ok((kind, body)) = unpacker.unpack(bytes) {
        assert!(body.len() <= MAX_BULK_BODY);
        let body = body.to_vec();
        for codec in Codec::ALL {
            let mut packer = Packer::default();
            if let Some(packed) = packer.pack(codec, kind, &[&body]).expect("it may be packed") {
                assert_eq!(unpacker.unpack(packed).expect("it was valid"), (kind, &body[..]));
            }
        }
    }
});
