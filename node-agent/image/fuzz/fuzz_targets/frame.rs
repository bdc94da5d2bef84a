//! Any bytes as a stream of frames: never a panic, never more memory than the bytes and one step.
#![no_main]

use image::frame::FrameReader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = FrameReader::new(bytes);
    while let Ok(Some(frame)) = reader.read() {
        assert!(frame.body.len() <= bytes.len());
    }
});
