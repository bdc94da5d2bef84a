use proptest::prelude::*;

use super::*;

fn facts() -> Facts {
    Facts {
        kernel_release: "6.18.0".into(),
        arch: "x86_64".into(),
        vdso_hash: 7,
        xsave_size: 2440,
        xcr0: 0xe7,
        memory_free: 1 << 30,
        memory_total: 2 << 30,
        peer_versions: vec![1],
        controllers: vec!["memory".into(), "pids".into()],
    }
}

fn node(name: &str) -> Candidate {
    Candidate { name: name.into(), ready: true, facts: Arc::new(facts()), ..Candidate::default() }
}

fn labels(of: &[(&str, &str)]) -> HashMap<String, String> {
    of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn needs() -> Needs {
    Needs {
        source: "a".into(),
        facts: facts(),
        memory: 1 << 20,
        controllers: vec!["pids".into()],
        container: "web".into(),
        labels: labels(&[(ANTI_AFFINITY, "db")]),
        selector: BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]),
    }
}

fn fitting(name: &str) -> Candidate {
    Candidate { labels: Arc::new(labels(&[("disk", "ssd")])), ..node(name) }
}

fn coming(container: &str, group: &str) -> Coming {
    Coming { container: container.into(), labels: labels(&[(ANTI_AFFINITY, group)]) }
}

#[test]
fn every_difference_is_a_reason_of_its_own() {
    assert_eq!(judge(&needs(), &fitting("b")).reasons, Vec::<String>::new());
    type Spoil = fn(&mut Candidate);
    let spoils: [(Spoil, &str, Bar); 19] = [
        (|c| c.name = "a".into(), "already", Bar::Never),
        (|c| c.ready = false, "not ready", Bar::Passing),
        (|c| c.cordoned = true, "cordoned", Bar::Standing),
        (|c| c.occupied = true, "of that name", Bar::Standing),
        (|c| Arc::make_mut(&mut c.facts).arch = "aarch64".into(), "machine", Bar::Never),
        (|c| Arc::make_mut(&mut c.facts).kernel_release = "6.1.0".into(), "kernel is 6.1.0", Bar::Never),
        (|c| Arc::make_mut(&mut c.facts).vdso_hash = 8, "vDSO", Bar::Never),
        (|c| Arc::make_mut(&mut c.facts).xcr0 = 7, "0xe0", Bar::Never),
        (|c| Arc::make_mut(&mut c.facts).xsave_size = 832, "832 bytes", Bar::Never),
        (|c| Arc::make_mut(&mut c.facts).peer_versions = vec![2], "versions [2]", Bar::Never),
        (|c| Arc::make_mut(&mut c.facts).controllers = vec!["memory".into()], "controller pids", Bar::Never),
        (|c| c.load.promised = 1 << 30, "0 MiB are free, 33 MiB", Bar::Passing),
        (
            |c| c.conflict = Some("db-2".into()),
            "db-2, also of the anti-affinity group db, is there",
            Bar::Standing,
        ),
        (
            |c| c.load.coming.push(coming("db-3", "db")),
            "db-3, also of the anti-affinity group db, comes",
            Bar::Standing,
        ),
        (|c| Arc::make_mut(&mut c.facts).memory_free = 0, "0 MiB are free, 33 MiB", Bar::Passing),
        (|c| Arc::make_mut(&mut c.facts).memory_total = 32 << 20, "it has 32 MiB in all, 33 MiB", Bar::Never),
        (
            |c| {
                c.conflict = Some("db-2".into());
                c.load.leaving = vec!["db-2".into()];
            },
            "db-2, also of the anti-affinity group db, is there",
            Bar::Passing,
        ),
        (|c| c.labels = Arc::default(), "no label disk=ssd", Bar::Never),
        (|c| c.labels = Arc::new(labels(&[("disk", "hdd")])), "no label disk=ssd", Bar::Never),
    ];
    for (spoil, reason, bar) in spoils {
        let mut spoilt = fitting("b");
        spoil(&mut spoilt);
        let verdict = judge(&needs(), &spoilt);
        assert_eq!(verdict.reasons.len(), 1, "{verdict:?}");
        assert!(verdict.reasons[0].contains(reason), "{verdict:?}");
        assert_eq!(verdict.bar, bar, "{verdict:?}");
    }
}

#[test]
fn the_greatest_bar_counts() {
    let mut full = fitting("b");
    full.load.promised = 1 << 30;
    full.cordoned = true;
    assert_eq!(judge(&needs(), &full).bar, Bar::Standing);
    Arc::make_mut(&mut full.facts).vdso_hash = 8;
    assert_eq!(judge(&needs(), &full).bar, Bar::Never);
    assert_eq!(judge(&needs(), &full).reasons.len(), 3);
    assert_eq!(judge(&needs(), &fitting("b")).bar, Bar::None);
}

#[test]
fn other_groups_and_the_container_itself_are_no_obstacle() {
    let mut there = fitting("b");
    there.load.coming = vec![coming("web", "db"), coming("x", "other"), Coming::default()];
    assert!(judge(&needs(), &there).reasons.is_empty());
    // An empty value is no group.
    let without = Needs { labels: labels(&[(ANTI_AFFINITY, "")]), ..needs() };
    there.load.coming = vec![coming("y", "")];
    assert!(judge(&without, &there).reasons.is_empty());
}

#[test]
fn a_richer_cpu_fits() {
    let mut richer = fitting("b");
    let facts = Arc::make_mut(&mut richer.facts);
    facts.xcr0 |= 0x60000;
    facts.xsave_size = 11008;
    assert!(judge(&needs(), &richer).reasons.is_empty());
}

#[test]
fn the_log_names_every_node_and_why() {
    let mut full = fitting("c");
    full.load.promised = 1 << 30;
    let mut busy = fitting("d");
    busy.load.leaving = vec!["x".into()];
    let choice = choose(&needs(), &[fitting("b"), full, busy]).unwrap();
    assert_eq!(choice.node, "b");
    assert_eq!(
        choice.log,
        [
            "b is chosen: 991 MiB stay free, 0 migrations there, 0 of the same labels",
            "c is not: 0 MiB are free, 33 MiB are needed",
            "d is not: 991 MiB stay free, 1 migrations there, 0 of the same labels",
        ]
    );
    let many: Vec<_> = (0..100).map(|n| fitting(&format!("n{n:03}"))).collect();
    let log = choose(&needs(), &many).unwrap().log;
    assert_eq!((log.len(), log[33].as_str()), (34, "nor are 67 more nodes"));
}

fn any_load() -> impl Strategy<Value = Load> {
    let one = ("[w-z]", "[ab]?").prop_map(|(container, group)| coming(&container, &group));
    (0u64..1 << 27, proptest::collection::vec("[w-z]", 0..4), proptest::collection::vec(one, 0..3))
        .prop_map(|(promised, leaving, coming)| Load { promised, leaving, coming })
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let conflict = proptest::option::weighted(0.2, "[w-z]");
    ("[a-h]", any::<[bool; 4]>(), 0u64..1 << 28, any_load(), 0u64..2, conflict, 0usize..3).prop_map(
        |(name, [ready, cordoned, occupied, ssd], free, load, vdso_hash, conflict, alike)| Candidate {
            name,
            ready,
            cordoned,
            occupied,
            load,
            settling: 0,
            conflict,
            alike,
            labels: Arc::new(if ssd { labels(&[("disk", "ssd")]) } else { HashMap::new() }),
            facts: Arc::new(Facts { memory_free: free, vdso_hash, ..facts() }),
        },
    )
}

fn any_needs() -> impl Strategy<Value = Needs> {
    (0u64..1 << 28, "[ab]?").prop_map(|(memory, group)| Needs {
        memory,
        facts: Facts { vdso_hash: 1, ..facts() },
        labels: labels(&[(ANTI_AFFINITY, &group)]),
        ..needs()
    })
}

proptest! {
    #[test]
    fn the_choice_fits_and_suits_best(
        nodes in proptest::collection::vec(any_candidate(), 0..8), needs in any_needs(),
    ) {
        let fits = |c: &&Candidate| judge(&needs, c).reasons.is_empty();
        match choose(&needs, &nodes) {
            Ok(Choice { node: name, .. }) => {
                prop_assert_ne!(&name, &needs.source);
                let best = nodes.iter().filter(fits).map(|c| score(&needs, c)).max();
                let is_it = |c: &&Candidate| c.name == name && Some(score(&needs, c)) == best;
                let chosen = nodes.iter().filter(fits).find(is_it).unwrap();
                prop_assert!(chosen.ready && !chosen.cordoned && (chosen.conflict.is_none() || group(&needs.labels).is_none()));
                prop_assert!(chosen.facts.memory_free >= needs.memory + chosen.load.promised);
                prop_assert!(chosen.labels.get("disk").is_some_and(|disk| disk == "ssd"));
                if let Some(own) = group(&needs.labels) {
                    let others = chosen.load.coming.iter().filter(|c| c.container != needs.container);
                    prop_assert!(others.filter_map(|c| group(&c.labels)).all(|group| group != own));
                }
            }
            Err(verdicts) => {
                prop_assert_eq!(verdicts.len(), nodes.len());
                prop_assert!(verdicts.iter().all(|v| !v.reasons.is_empty() && v.bar > Bar::None));
            }
        }
    }

    #[test]
    fn the_order_of_nodes_does_not_matter(
        nodes in proptest::collection::vec(any_candidate(), 0..8), needs in any_needs(), turn in 0usize..8,
    ) {
        let mut nodes: Vec<_> = nodes.into_iter().map(|c| (c.name.clone(), c)).collect::<BTreeMap<_, _>>().into_values().collect();
        let first = choose(&needs, &nodes).map(|choice| choice.node).ok();
        let by = turn % nodes.len().max(1);
        nodes.rotate_left(by);
        prop_assert_eq!(first, choose(&needs, &nodes).map(|choice| choice.node).ok());
    }

    #[test]
    fn of_equal_nodes_the_one_with_less_load_is_chosen(
        free in 0u64..1 << 28, load in 0usize..4, more in 1usize..4, alike in any::<bool>(), memory in 0u64..1 << 24,
    ) {
        let needs = Needs { memory, ..needs() };
        let with = |name: &str, extra: usize| {
            let mut node = fitting(name);
            Arc::make_mut(&mut node.facts).memory_free = free + memory + OVERHEAD;
            node.load.leaving = vec!["x".to_owned(); load + if alike { 0 } else { extra }];
            node.alike = if alike { extra } else { 0 };
            node
        };
        // The idler one has the later name: only the load can make the difference.
        let nodes = [with("b", more), with("c", 0)];
        prop_assert_eq!(choose(&needs, &nodes).unwrap().node, "c");
    }

    /// Whatever arrives one after the other, promised room is never given twice.
    #[test]
    fn arrivals_never_overcommit_memory(
        free in proptest::collection::vec(0u64..1 << 29, 1..5), sizes in proptest::collection::vec(0u64..1 << 27, 0..30),
    ) {
        let mut loads = Loads::default();
        let mut given: BTreeMap<String, u64> = BTreeMap::new();
        let group = |index: usize| if index.is_multiple_of(3) { "db" } else { "" };
        let mut of_db: BTreeMap<String, usize> = BTreeMap::new();
        for (index, memory) in sizes.into_iter().enumerate() {
            let name = format!("c{index}");
            let labels = labels(&[(ANTI_AFFINITY, group(index))]);
            let needs = Needs { memory, container: name.clone(), labels: labels.clone(), ..needs() };
            let nodes: Vec<_> = free.iter().enumerate().map(|(n, free)| {
                let mut node = fitting(&format!("n{n}"));
                Arc::make_mut(&mut node.facts).memory_free = *free;
                node.load = loads.of(&node.name);
                node
            }).collect();
            if let Ok(choice) = choose(&needs, &nodes) {
                loads.add("a", &choice.node, memory, &name, &labels);
                *given.entry(choice.node.clone()).or_default() += memory;
                *of_db.entry(choice.node).or_default() += usize::from(index.is_multiple_of(3));
            }
        }
        for (n, free) in free.iter().enumerate() {
            let node = format!("n{n}");
            prop_assert!(given.get(&node).is_none_or(|given| given <= free));
            prop_assert!(of_db.get(&node).is_none_or(|count| *count <= 1));
        }
    }
}
