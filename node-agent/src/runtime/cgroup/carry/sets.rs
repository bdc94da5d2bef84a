//! Lists of CPUs and memory nodes, as cpuset(7) writes them.

use std::collections::BTreeSet;

/// No kernel has more CPUs or nodes.
const MAX: u32 = 8192;

/// CPUs or memory nodes.
pub(super) type Set = BTreeSet<u32>;

/// Understands `0-3,7`; an empty text is an empty set. `None` when it is no list.
pub(super) fn parse(text: &str) -> Option<Set> {
    let mut set = Set::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MAX {
            return None;
        }
        set.extend(first..=last);
    }
    Some(set)
}

/// The shortest list of a set.
pub(super) fn format(set: &Set) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &number in set {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => parts.push((number, number)),
        }
    }
    let part = |(first, last): (u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    parts.into_iter().map(part).collect::<Vec<_>>().join(",")
}

/// What a set becomes on another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mapped {
    /// It was everything there: everything here.
    All,
    /// These.
    Some(Set),
}

/// Maps `set` from a host where the container may have `there` to one where it may have `here`: everything stays
/// everything, what exists stays as it is, and what does not is left out when `widen` allows that; a set with
/// nothing left becomes everything. Err names what does not exist.
pub(super) fn map(set: &Set, there: &Set, here: &Set, widen: bool) -> Result<Mapped, String> {
    if set == there {
        return Ok(Mapped::All);
    }
    let missing: Set = set.difference(here).copied().collect();
    if missing.is_empty() {
        return Ok(Mapped::Some(set.clone()));
    }
    if !widen {
        return Err(format(&missing));
    }
    let left: Set = set.intersection(here).copied().collect();
    Ok(if left.is_empty() { Mapped::All } else { Mapped::Some(left) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_list_is_read_as_it_is_written(set in prop::collection::btree_set(0..300_u32, 0..40)) {
            prop_assert_eq!(parse(&format(&set)), Some(set));
        }

        #[test]
        fn a_mapped_set_exists_and_is_never_empty(
            set in prop::collection::btree_set(0..16_u32, 1..8),
            there in prop::collection::btree_set(0..16_u32, 1..16),
            here in prop::collection::btree_set(0..16_u32, 1..16),
            widen: bool,
        ) {
            match map(&set, &there, &here, widen) {
                Ok(Mapped::All) => prop_assert!(set == there || widen && set.is_disjoint(&here)),
                Ok(Mapped::Some(mapped)) => {
                    prop_assert!(!mapped.is_empty() && mapped.is_subset(&here) && mapped.is_subset(&set));
                    prop_assert!(widen || mapped == set);
                }
                Err(_) => prop_assert!(!widen && !set.is_subset(&here)),
            }
        }
    }

    #[test]
    fn what_is_no_list() {
        assert_eq!(parse("0-2,5\n"), Some([0, 1, 2, 5].into()));
        for text in ["a", "3-1", "0-99999999", "-1", "1,,x"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
