//! Any bytes as a page batch; what decodes must encode to the same bytes.
#![no_main]

use image::pages::{decode, encode_head};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut runs = Vec::new();
    if let Ok(batch) = decode(bytes, &mut runs) {
        let mut head = Vec::new();
        encode_head(&batch, &mut head).expect("it was valid");
        head.extend_from_slice(batch.data);
        assert_eq!(head, bytes);
    }
});
