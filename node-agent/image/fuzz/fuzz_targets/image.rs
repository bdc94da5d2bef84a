//! Any bytes as a Image; what decodes must survive another round.
#![no_main]

use image::codec::{decode, encode};
use image::state::Image;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = decode::<Image>(bytes) {
        let again = encode(&value).expect("every value has bytes");
        assert_eq!(decode::<Image>(&again).expect("they are its own"), value);
    }
});
