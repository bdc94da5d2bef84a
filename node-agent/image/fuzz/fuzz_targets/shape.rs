//! Any bytes as a Shape; what decodes must survive another round.
#![no_main]

use image::codec::{decode, encode};
use image::shape::Shape;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = decode::<Shape>(bytes) {
        let again = encode(&value).expect("every value has bytes");
        assert_eq!(decode::<Shape>(&again).expect("they are its own"), value);
    }
});
