//! Page batches: round trips, splitting, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test may")]

use image::PAGE_SIZE;
use image::frame::MAX_BULK_BODY;
use image::pages::{Batch, BatchError, Owner, Run, RunKind, decode, encode_head, split};
use proptest::prelude::*;

prop_compose! {
    fn run()(page in 0u64..1 << 35, pages in 1u32..4, kind in 0u8..3) -> Run {
        let kind = [RunKind::Data, RunKind::Zero, RunKind::Drop][usize::from(kind)];
        Run { addr: page * PAGE_SIZE, pages, kind }
    }
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        any::<i32>().prop_map(Owner::Process),
        any::<u32>().prop_map(Owner::Object),
        any::<u32>().prop_map(Owner::Ghost),
        Just(Owner::Template)
    ]
}

/// Data for these runs, every page another.
fn data(runs: &[Run]) -> Vec<u8> {
    let pages: u32 = runs.iter().filter(|run| run.kind == RunKind::Data).map(|run| run.pages).sum();
    (0..pages).flat_map(|page| [u8::try_from(page % 251).unwrap(); 4096]).collect()
}

fn encode(batch: &Batch<'_>) -> Result<Vec<u8>, BatchError> {
    let mut head = Vec::new();
    encode_head(batch, &mut head)?;
    Ok([&head, batch.data].concat())
}

proptest! {
    #[test]
    fn a_batch_comes_back_as_it_was(owner in owner(), runs in prop::collection::vec(run(), 0..40)) {
        let data = data(&runs);
        let batch = Batch { owner, runs: &runs, data: &data };
        let bytes = encode(&batch).unwrap();
        let mut decoded = Vec::new();
        prop_assert_eq!(decode(&bytes, &mut decoded).unwrap(), batch);
    }

    #[test]
    fn a_prefix_or_suffix_is_no_batch(runs in prop::collection::vec(run(), 1..6), cut in any::<prop::sample::Index>()) {
        let data = data(&runs);
        let mut bytes = encode(&Batch { owner: Owner::Process(1), runs: &runs, data: &data }).unwrap();
        prop_assert!(decode(&bytes[..cut.index(bytes.len())], &mut Vec::new()).is_err());
        bytes.push(0);
        prop_assert!(decode(&bytes, &mut Vec::new()).is_err());
    }

    #[test]
    fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes, &mut Vec::new());
    }

    #[test]
    fn what_decodes_encodes_to_the_same_bytes(mut bytes in prop::collection::vec(any::<u8>(), 12..100), owner in 1u8..4, runs in 0u8..4) {
        bytes[..4].copy_from_slice(&[owner, 0, 0, 0]);
        bytes[8..12].copy_from_slice(&[runs, 0, 0, 0]);
        let mut decoded = Vec::new();
        if let Ok(batch) = decode(&bytes, &mut decoded) {
            prop_assert_eq!(encode(&batch).unwrap(), bytes);
        }
    }
}

#[test]
fn a_huge_count_allocates_nothing() {
    let mut bytes = vec![1, 0, 0, 0, 1, 0, 0, 0];
    bytes.extend(u32::MAX.to_le_bytes());
    let mut runs = Vec::new();
    assert_eq!(decode(&bytes, &mut runs), Err(BatchError::Short));
    assert_eq!(runs.capacity(), 0);
}

#[test]
fn invalid_runs_are_named() {
    let good = Run { addr: 4096, pages: 1, kind: RunKind::Zero };
    for bad in [
        Run { pages: 0, ..good },
        Run { addr: 4097, ..good },
        Run { addr: u64::MAX - 4095, ..good },
        Run { addr: 1 << 57, ..good },
    ] {
        let batch = Batch { owner: Owner::Object(3), runs: &[good, bad], data: &[] };
        assert_eq!(encode(&batch), Err(BatchError::Run(1)), "{bad:?}");
    }
    let lacking =
        Batch { owner: Owner::Process(1), runs: &[Run { kind: RunKind::Data, ..good }], data: &[0; 100] };
    assert_eq!(encode(&lacking), Err(BatchError::Data { found: 100, expected: 4096 }));
}

#[test]
fn kinds_that_are_zero_or_unknown_are_refused() {
    let run = Run { addr: 4096, pages: 1, kind: RunKind::Zero };
    let bytes = encode(&Batch { owner: Owner::Process(1), runs: &[run], data: &[] }).unwrap();
    for (at, values) in [(0, [0, 3]), (1, [1, 255]), (12, [0, 4])] {
        for value in values {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            assert!(decode(&damaged, &mut Vec::new()).is_err(), "byte {at} = {value}");
        }
    }
}

#[test]
fn a_batch_larger_than_a_frame_is_split_and_nothing_is_lost() {
    let runs = [
        Run { addr: 0x10_0000, pages: 3, kind: RunKind::Zero },
        Run { addr: 0x4000_0000, pages: 2600, kind: RunKind::Data },
        Run { addr: 0x8000_0000, pages: 7, kind: RunKind::Drop },
        Run { addr: 0xc000_0000, pages: 1, kind: RunKind::Data },
    ];
    let data = data(&runs);
    let batch = Batch { owner: Owner::Process(7), runs: &runs, data: &data };
    assert!(matches!(encode(&batch), Err(BatchError::TooLarge(_))));
    for most in [0, 100_000, MAX_BULK_BODY, usize::MAX] {
        split_and_compare(&batch, most);
    }
}

fn split_and_compare(batch: &Batch<'_>, most: usize) {
    let (mut parts, mut pages) = (0, Vec::new());
    let (runs, data) = (batch.runs, batch.data);
    split(batch, most, &mut |part: &Batch<'_>| {
        assert!(encode(part).unwrap().len() <= most.clamp(8192, MAX_BULK_BODY));
        parts += 1;
        let mut contents = part.data.chunks_exact(4096);
        for run in part.runs {
            for page in 0..u64::from(run.pages) {
                let first = (run.kind == RunKind::Data).then(|| contents.next().unwrap()[0]);
                pages.push((run.addr + page * PAGE_SIZE, run.kind as u8, first));
            }
        }
        Ok::<(), ()>(())
    })
    .unwrap();
    let mut contents = data.chunks_exact(4096);
    let expected: Vec<_> = runs
        .iter()
        .flat_map(|run| (0..u64::from(run.pages)).map(move |page| (run.addr + page * PAGE_SIZE, run.kind)))
        .map(|(addr, kind)| (addr, kind as u8, (kind == RunKind::Data).then(|| contents.next().unwrap()[0])))
        .collect();
    assert!(parts >= 3, "{parts}");
    assert_eq!(pages, expected);
}

#[test]
fn a_small_batch_is_handed_on_as_it_is_and_errors_stop_it() {
    let run = Run { addr: 4096, pages: 1, kind: RunKind::Drop };
    let batch = Batch { owner: Owner::Process(7), runs: &[run], data: &[] };
    let mut parts = 0;
    assert_eq!(
        split(&batch, MAX_BULK_BODY, &mut |part| {
            parts += 1;
            assert_eq!(part, &batch);
            Err("stop")
        }),
        Err("stop")
    );
    assert_eq!(parts, 1);
}
