//! What files cost in the pause: a last round over a tree in which ten files changed, by each way of finding changes.
//!
//! ```text
//! cargo bench -p node-agent --bench files [-- FILES]
//! ```
//!
//! It needs root, and room for the tree twice in the temporary directory. Medians of eleven last rounds, the writing at
//! the target included.

#![allow(clippy::unwrap_used, reason = "a failed step ends the measurement")]

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use node_agent::files::{Area, Source, Suspects, Target, Tracking};

const PER_DIRECTORY: usize = 100;
const CHANGED: usize = 10;

fn main() {
    let count = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(100_000);
    let dir = tempfile::Builder::new().prefix("gantry-bench-").tempdir().unwrap();
    let from = dir.path().join("from");
    let file = |number: usize| from.join((number / PER_DIRECTORY).to_string()).join(number.to_string());
    for number in 0..count {
        let path = file(number);
        if number % PER_DIRECTORY == 0 {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(path, number.to_string()).unwrap();
    }
    println!("{count} files, {CHANGED} of them changed");
    println!("{:<10} {:>12} {:>14} {:>12}", "by", "first, ms", "last, ms", "entries");
    for (name, tracking) in
        [("fanotify", Tracking::Best), ("inotify", Tracking::Names), ("walk", Tracking::Walk)]
    {
        let to = dir.path().join(name);
        fs::create_dir(&to).unwrap();
        let area = |path: &Path| Area::new(File::open(path).unwrap().into(), "/");
        let mut source = Source::tracking(vec![area(&from)], dir.path().join("log"), tracking);
        let mut target = Target::new(vec![area(&to)], dir.path().join("log-there"));
        let mut apply = |batch: &[u8]| target.apply(batch).map_err(std::io::Error::other);
        let began = Instant::now();
        source.round(&mut apply).unwrap();
        let first = began.elapsed();
        source.round(&mut apply).unwrap();
        let mut entries = 0;
        let mut times: Vec<f64> = (0..11)
            .map(|round: usize| {
                for changed in 0..CHANGED {
                    let content = format!("changed {round}");
                    fs::write(file((changed * 7919 + round * 101) % count), content).unwrap();
                }
                let began = Instant::now();
                entries = source.last(&Suspects::default(), &mut apply).unwrap().entries;
                began.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        println!(
            "{name:<10} {:>12.0} {:>14.2} {entries:>12}",
            first.as_secs_f64() * 1e3,
            times[times.len() / 2]
        );
        fs::remove_dir_all(&to).unwrap();
    }
}
