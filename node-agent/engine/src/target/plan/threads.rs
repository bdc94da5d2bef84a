//! Who makes which thread of a process, where threads have descriptor tables or directories of their own: who shares them
//! gets them from its maker, and who is the first that has them leaves those of its process (unshare(2)).

use std::collections::BTreeMap;

use image::Pid;
use image::shape::Shared;

/// Why a thread cannot be made.
pub(crate) const NO_MAKER: &str =
    "it shares its descriptor table with one thread and its directories with another";

/// A thread that does not have all from its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its tid.
    pub(crate) tid: Pid,
    /// Its descriptor table is not its process's.
    pub(crate) files: bool,
    /// Its directories are not.
    pub(crate) directories: bool,
    /// What of these it shares with other threads.
    pub(crate) shared: Shared,
}

/// What a thread makes of what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    /// The thread.
    pub(crate) tid: Pid,
    /// Who makes it; `None` = any thread that has all from its process.
    pub(crate) maker: Option<Pid>,
    /// It leaves the descriptor table that it was given.
    pub(crate) own_files: bool,
    /// It leaves the directories.
    pub(crate) own_directories: bool,
}

/// The first thread that has a table or directories; 0 = the process's.
type Have = (Pid, Pid);

impl Wanted {
    fn have(&self) -> Have {
        let first = |own: bool, first: Pid| match (own, first) {
            (false, _) => 0,
            (true, 0) => self.tid,
            (true, first) => first,
        };
        (first(self.files, self.shared.files), first(self.directories, self.shared.directories))
    }
}

/// An order in which they can be made.
///
/// # Errors
/// The tid of one that nobody can make.
pub(crate) fn plan(threads: &[Wanted]) -> Result<Vec<Made>, Pid> {
    let mut made: Vec<Made> = Vec::with_capacity(threads.len());
    let mut makers: BTreeMap<Have, Option<Pid>> = BTreeMap::from([((0, 0), None)]);
    let mut left: Vec<&Wanted> = threads.iter().collect();
    while let Some(first) = left.first() {
        let (stuck, before) = (first.tid, left.len());
        left.retain(|wanted| {
            let (files, directories) = wanted.have();
            let fits = |have: &Have| {
                (files == wanted.tid || have.0 == files)
                    && (directories == wanted.tid || have.1 == directories)
            };
            let Some(maker) = makers.iter().find(|(have, _)| fits(have)).map(|(_, maker)| *maker) else {
                return true;
            };
            made.push(Made {
                tid: wanted.tid,
                maker,
                own_files: files == wanted.tid,
                own_directories: directories == wanted.tid,
            });
            makers.entry((files, directories)).or_insert(Some(wanted.tid));
            false
        });
        if left.len() == before {
            return Err(stuck);
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted(tid: Pid, files: Option<Pid>, directories: Option<Pid>) -> Wanted {
        let shared = Shared { files: files.unwrap_or(0), directories: directories.unwrap_or(0) };
        Wanted { tid, files: files.is_some(), directories: directories.is_some(), shared }
    }

    #[test]
    fn whoever_shares_is_made_by_one_that_has_it() {
        let threads = [wanted(3, Some(5), None), wanted(5, Some(5), None), wanted(7, None, Some(0))];
        let made = plan(&threads).unwrap();
        let of = |tid: Pid| *made.iter().find(|made| made.tid == tid).unwrap();
        assert_eq!(of(5), Made { tid: 5, maker: None, own_files: true, own_directories: false });
        assert_eq!(of(3), Made { tid: 3, maker: Some(5), own_files: false, own_directories: false });
        assert_eq!(of(7), Made { tid: 7, maker: None, own_files: false, own_directories: true });
    }

    #[test]
    fn nobody_gives_what_two_have() {
        let threads = [wanted(3, Some(3), None), wanted(4, None, Some(4)), wanted(5, Some(3), Some(4))];
        assert_eq!(plan(&threads), Err(5));
    }

    proptest! {
        /// A history of clone(2) and unshare(2), without ends: all of it can be made again.
        #[test]
        fn every_history_can_be_made(steps in prop::collection::vec((0..8usize, any::<(bool, bool)>()), 1..12)) {
            let mut have: Vec<(Pid, Have)> = vec![(1, (0, 0))];
            for (maker, (files, directories)) in steps {
                let (_, of_maker) = have[maker % have.len()];
                let tid = 2 + Pid::try_from(have.len()).unwrap();
                have.push((tid, (
                    if files { tid } else { of_maker.0 },
                    if directories { tid } else { of_maker.1 },
                )));
            }
            let threads: Vec<Wanted> = have.iter().skip(1).filter(|(_, have)| *have != (0, 0)).map(|(tid, (files, directories))| {
                wanted(*tid, (*files != 0).then_some(*files), (*directories != 0).then_some(*directories))
            }).collect();
            let made = plan(&threads).unwrap();
            let mut state: BTreeMap<Pid, Have> = BTreeMap::new();
            for made in made {
                let from = made.maker.map_or((0, 0), |maker| state[&maker]);
                state.insert(made.tid, (
                    if made.own_files { made.tid } else { from.0 },
                    if made.own_directories { made.tid } else { from.1 },
                ));
            }
            for thread in threads {
                prop_assert_eq!(state[&thread.tid], thread.have());
            }
        }
    }
}
