//! The plan, carried out on a model of pages, gives the wanted mappings and keeps what must be kept.

use std::collections::BTreeMap;

use super::*;
use image::PAGE_SIZE;
use image::shape::FileIdentity;
use proptest::prelude::*;

/// One page of the model: how it is mapped, and whether its contents were there before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Page {
    vma: Vma,
    old: bool,
}

fn pages(vmas: &[Vma], old: bool) -> BTreeMap<Addr, Page> {
    let mut pages = BTreeMap::new();
    for vma in vmas.iter().filter(|v| !is_special(v)) {
        for at in (vma.start..vma.end).step_by(4096) {
            pages.insert(at, Page { vma: part(vma, at, at + PAGE_SIZE), old });
        }
    }
    pages
}

fn execute(model: &mut BTreeMap<Addr, Page>, steps: &[MemoryStep]) {
    for step in steps {
        match step {
            MemoryStep::Unmap { start, end } => {
                for at in (*start..*end).step_by(4096) {
                    assert!(model.remove(&at).is_some(), "unmaps {at:#x}, which is not mapped");
                }
            }
            MemoryStep::Map(vma) => {
                for (at, page) in pages(std::slice::from_ref(vma), false) {
                    assert!(model.insert(at, page).is_none(), "MAP_FIXED_NOREPLACE at {at:#x}: EEXIST");
                }
            }
            MemoryStep::Protect { start, end, prot } => {
                model.range_mut(start..end).for_each(|(_, p)| p.vma.prot = *prot);
            }
            MemoryStep::Name { start, end, name } => {
                model.range_mut(start..end).for_each(|(_, p)| p.vma.anon_name.clone_from(name));
            }
            MemoryStep::Advise { start, end, advice } => {
                model.range_mut(start..end).for_each(|(_, p)| advise(&mut p.vma.flags, *advice));
            }
        }
    }
}

fn advise(flags: &mut VmaFlags, advice: i32) {
    match advice {
        advice::NORMAL => (flags.sequential, flags.random) = (false, false),
        advice::RANDOM => (flags.sequential, flags.random) = (false, true),
        advice::SEQUENTIAL => (flags.sequential, flags.random) = (true, false),
        advice::DONTFORK => flags.dont_fork = true,
        advice::DOFORK => flags.dont_fork = false,
        advice::MERGEABLE => flags.mergeable = true,
        advice::UNMERGEABLE => flags.mergeable = false,
        advice::HUGEPAGE => (flags.huge_page, flags.no_huge_page) = (true, false),
        advice::NOHUGEPAGE => (flags.huge_page, flags.no_huge_page) = (false, true),
        advice::DONTDUMP => flags.dont_dump = true,
        advice::DODUMP => flags.dont_dump = false,
        advice::WIPEONFORK => flags.wipe_on_fork = true,
        advice::KEEPONFORK => flags.wipe_on_fork = false,
        other => panic!("unknown advice {other}"),
    }
}

fn backing() -> impl Strategy<Value = Backing> {
    prop_oneof![
        Just(Backing::Anonymous),
        (0..2u8, any::<bool>()).prop_map(|(file, shared)| Backing::File {
            file: FileIdentity { path: format!("/lib/{file}"), ..FileIdentity::default() },
            offset: 0,
            shared,
            may_write: shared,
        }),
        (0..2u32).prop_map(|id| Backing::Object { id, offset: 0, shared: true, may_write: true }),
        Just(Backing::Vdso),
    ]
}

fn flags() -> impl Strategy<Value = VmaFlags> {
    prop::bits::u16::between(0, 9).prop_map(|bits| {
        let bit = |n: u32| bits & (1 << n) != 0;
        VmaFlags {
            grows_down: bit(0),
            no_reserve: bit(1),
            dont_fork: bit(2),
            wipe_on_fork: bit(3),
            dont_dump: bit(4),
            sequential: bit(5) && !bit(6),
            random: bit(6),
            huge_page: bit(7) && !bit(8),
            no_huge_page: bit(8),
            mergeable: bit(9),
            ..VmaFlags::default()
        }
    })
}

/// Mappings over 40 pages. The file offset follows the address, so that parts of one file line up.
fn vmas() -> impl Strategy<Value = Vec<Vma>> {
    let flags = prop_oneof![Just(VmaFlags::default()), flags()];
    let one = (0..6u64, 1..6u64, 0..8u8, backing(), flags, 0..3u8, any::<bool>());
    prop::collection::vec(one, 0..8).prop_map(|list| {
        let mut at = 0x10000;
        let mut out = Vec::new();
        for (gap, len, prot, mut backing, flags, name, huge) in list {
            let start = at + gap * PAGE_SIZE;
            at = start + len * PAGE_SIZE;
            if let Backing::File { offset, .. } | Backing::Object { offset, .. } = &mut backing {
                *offset = start;
            }
            let anon_name = (name == 1).then(|| "heap".to_owned());
            out.push(Vma {
                start,
                end: at,
                prot,
                backing,
                flags,
                anon_name,
                huge: if huge { PAGE_SIZE } else { 0 },
            });
        }
        out
    })
}

fn unlock(flags: VmaFlags) -> VmaFlags {
    VmaFlags { locked: false, locked_on_fault: false, accounted: false, ..flags }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_planned_address_space_is_the_wanted_one(current in vmas(), wanted in vmas()) {
        let mut model = pages(&current, true);
        let steps = plan(&current, &wanted);
        execute(&mut model, &steps);
        let target = pages(&wanted, false);
        prop_assert_eq!(model.keys().collect::<Vec<_>>(), target.keys().collect::<Vec<_>>());
        for (at, page) in &model {
            let want = &target[at].vma;
            prop_assert_eq!(&page.vma.backing, &want.backing);
            prop_assert_eq!(filling(&page.vma), filling(want));
            prop_assert_eq!(&page.vma.anon_name, &want.anon_name);
            prop_assert_eq!(unlock(page.vma.flags), unlock(want.flags));
            // Contents stay exactly where nothing forces a new mapping.
            let whole = |vmas: &[Vma]| {
                vmas.iter().find(|v| !is_special(v) && v.start <= *at && *at < v.end).cloned()
            };
            let kept = whole(&current).zip(whole(&wanted));
            prop_assert_eq!(page.old, kept.is_some_and(|(have, want)| keeps_contents(&have, &want, *at)));
        }
        // The kernel joins no mappings of huge pages.
        for step in &steps {
            if let MemoryStep::Map(made) = step && made.huge != 0 {
                prop_assert!(wanted.iter().any(|want| (want.start, want.end) == (made.start, made.end)));
            }
        }
    }

    #[test]
    fn nothing_changes_where_nothing_changed(vmas in vmas()) {
        prop_assert!(plan(&vmas, &vmas).is_empty());
    }

    #[test]
    fn a_fresh_address_space_takes_one_call_a_mapping(vmas in vmas()) {
        let count = vmas.iter().filter(|v| !is_special(v)).count();
        prop_assert_eq!(plan(&[], &vmas).len(), count);
    }
}
