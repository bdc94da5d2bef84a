use proptest::prelude::*;

use super::*;

/// A mount as the kernel would have it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Live {
    mount: Mounted,
    spot: Spot,
    shows: (Origin, Vec<u8>),
    attributes: u64,
    group: Option<u32>,
    master: Option<u32>,
    unbindable: bool,
}

/// The mounts of a sandbox.
#[derive(Clone, Debug, Default)]
struct Kernel {
    live: Vec<Live>,
    provided: BTreeSet<Origin>,
    next_group: u32,
}

impl Kernel {
    fn of(base: &[Base]) -> Self {
        let live = Layout::built(base).mounts.into_iter().zip(base).map(|((mount, spot), base)| Live {
            mount,
            spot,
            shows: (Origin::Configured(base.key.clone()), Vec::new()),
            attributes: base.attributes,
            group: None,
            master: None,
            unbindable: false,
        });
        Self { live: live.collect(), provided: BTreeSet::new(), next_group: 1000 }
    }

    fn get(&mut self, mount: &Mounted) -> &mut Live {
        self.live
            .iter_mut()
            .find(|live| live.mount == *mount)
            .unwrap_or_else(|| panic!("{mount:?} is not mounted"))
    }

    fn run(&mut self, base: &[Base], steps: &[Step]) {
        for step in steps {
            match step {
                Step::Private => {
                    for live in &mut self.live {
                        (live.group, live.master, live.unbindable) = (None, None, false);
                    }
                }
                Step::Provide(origin) => {
                    if let Origin::Configured(key) = origin {
                        self.get(&Mounted::Configured(key.clone()));
                    }
                    assert!(self.provided.insert(origin.clone()), "{origin:?} twice");
                }
                Step::Change(_) | Step::Refit { .. } => {}
                Step::Unmount { mount, spot } => {
                    assert!(
                        self.live.iter().all(|live| live.spot.on.as_ref() != Some(mount)),
                        "{mount:?} is busy"
                    );
                    assert_eq!(self.get(mount).spot, *spot);
                    self.live.retain(|live| live.mount != *mount);
                }
                Step::Mount { id, of, path, spot, attributes, .. } => {
                    assert!(self.provided.contains(of), "{of:?} was not provided");
                    // On nothing is only the root directory of another namespace.
                    if let Some(on) = &spot.on {
                        self.get(on);
                        assert!(self.live.iter().all(|live| live.spot != *spot), "{spot:?} is taken");
                    }
                    let configured = match of {
                        Origin::Configured(key) => {
                            base.iter().find(|base| base.key == *key).map_or(0, |b| b.attributes)
                        }
                        Origin::Made(_) => 0,
                    };
                    self.live.push(Live {
                        mount: Mounted::Made(*id),
                        spot: spot.clone(),
                        shows: (of.clone(), path.clone()),
                        attributes: attributes.unwrap_or(configured),
                        group: None,
                        master: None,
                        unbindable: false,
                    });
                }
                Step::Attributes(mount, bits) => self.get(mount).attributes = *bits,
                Step::Share(mount) => {
                    self.next_group += 1;
                    let group = self.next_group;
                    let live = self.get(mount);
                    assert_eq!(live.group, None);
                    live.group = Some(group);
                }
                Step::Join { from, to } => {
                    let from = self.get(from).clone();
                    assert!(from.group.is_some(), "the kernel wants a shared one");
                    let to = self.get(to);
                    assert_eq!((to.group, to.master), (None, None));
                    (to.group, to.master) = (from.group, from.master);
                }
                Step::Enslave(mount) => {
                    let group = self.get(mount).group.expect("it has peers");
                    assert!(self.live.iter().filter(|live| live.group == Some(group)).count() > 1);
                    let live = self.get(mount);
                    (live.master, live.group) = (Some(group), None);
                }
                Step::Unbindable(mount) => self.get(mount).unbindable = true,
            }
        }
    }

    /// It is what `tree` says, peer groups up to their numbers.
    fn check(&self, base: &[Base], tree: &Tree, layout: &Layout) {
        let mut names: BTreeMap<u32, u32> = BTreeMap::new();
        for node in &tree.nodes {
            let Some(mount) = layout.of.get(&node.id) else { panic!("nothing stands for {node:?}") };
            let live = self.live.iter().find(|live| live.mount == *mount).expect("it is mounted");
            let on = node.parent.map(|parent| layout.of[&parent].clone());
            assert_eq!(live.spot, Spot { on, place: node.place.clone() });
            let shows = match &node.shows {
                Shows::Configured(key) => (Origin::Configured(key.clone()), Vec::new()),
                Shows::Part { of, path, .. } => (of.clone(), path.clone()),
            };
            assert_eq!(live.shows, shows);
            let configured = match &shows.0 {
                Origin::Configured(key) => {
                    base.iter().find(|base| base.key == *key).map_or(0, |base| base.attributes)
                }
                Origin::Made(_) => 0,
            };
            assert_eq!(live.attributes, node.attributes.unwrap_or(configured), "{node:?}");
            assert_eq!(live.unbindable, node.unbindable);
            assert_eq!(
                (live.group.is_some(), live.master.is_some()),
                (node.shared.is_some(), node.master.is_some())
            );
            for (real, name) in [(live.group, node.shared), (live.master, node.master)] {
                if let (Some(real), Some(name)) = (real, name) {
                    assert_eq!(*names.entry(name).or_insert(real), real, "another group");
                }
            }
        }
        let distinct: BTreeSet<u32> = names.values().copied().collect();
        assert_eq!(distinct.len(), names.len(), "groups were joined");
        for gone in &tree.gone {
            let gone = Mounted::Configured(gone.clone());
            assert!(self.live.iter().all(|live| live.mount != gone), "{gone:?} is still there");
        }
    }
}

fn key(name: &str) -> Key {
    Key { point: name.into(), nth: 0 }
}

fn base() -> Vec<Base> {
    let mount = |name: &str, parent: Option<&str>, place: &str, attributes| Base {
        key: key(name),
        parent: parent.map(key),
        place: place.into(),
        attributes,
    };
    vec![
        mount("/", None, "", 0),
        mount("/proc", Some("/"), "proc", 0),
        mount("/dev", Some("/"), "dev", 2),
        mount("/dev/shm", Some("/dev"), "shm", 6),
        mount("/tmp", Some("/"), "tmp", 0),
    ]
}

/// What a container does to its tree: an operation a number.
fn act(tree: &mut Tree, next: &mut u32, what: u32) {
    let pick = |list: usize, salt: u32| ((what >> 8).wrapping_mul(salt) >> 5) as usize % list;
    let at = pick(tree.nodes.len(), 0x9e37_79b1);
    let is_leaf = |tree: &Tree, id: u32| tree.nodes.iter().all(|node| node.parent != Some(id));
    match what % 8 {
        // A bind or a new file system, on top of whatever is there.
        0..=2 => {
            let mut parent = tree.nodes[at].id;
            let mut place = format!("d{}", what >> 4 & 3).into_bytes();
            while let Some(top) =
                tree.nodes.iter().find(|node| node.parent == Some(parent) && node.place == place)
            {
                parent = top.id;
                place = Vec::new();
            }
            if tree.node(parent).is_some_and(|node| node.parent.is_none()) && place.is_empty() {
                return;
            }
            let of = match what % 3 {
                0 => Origin::Made(u64::from(what >> 6 & 3)),
                1 => Origin::Configured(key("/tmp")),
                _ => Origin::Configured(key("/dev/shm")),
            };
            // What is not mounted anywhere cannot be bound.
            if let Origin::Configured(key) = &of
                && !tree.nodes.iter().any(|node| match &node.shows {
                    Shows::Configured(own) | Shows::Part { of: Origin::Configured(own), .. } => own == key,
                    Shows::Part { .. } => false,
                })
            {
                return;
            }
            if let Origin::Made(id) = of
                && file_system(tree, id).is_none()
            {
                tree.made.push(FileSystem {
                    id,
                    fs_type: "tmpfs".into(),
                    source: b"none".to_vec(),
                    options: vec![],
                    read_only: false,
                    pid_space: 0,
                });
            }
            *next += 1;
            let path: &[u8] = if what & 0x40 == 0 { b"" } else { b"sub" };
            let begins = what & 0xc000_0000 == 0;
            let within = tree.node(parent).map_or(0, |node| node.space);
            tree.nodes.push(Node {
                space: if begins { u64::from(*next) } else { within },
                id: *next,
                parent: (!begins).then_some(parent),
                place: if begins { Vec::new() } else { place },
                point: b"/somewhere".to_vec(),
                shows: Shows::Part { of, path: path.to_vec(), deleted: false },
                depth: if path.is_empty() { 1 } else { 4 },
                directory: true,
                attributes: Some(u64::from(what >> 10 & 7)),
                shared: None,
                master: None,
                unbindable: what & 0x1f000 == 0,
            });
        }
        3 | 4 => {
            let node = tree.nodes[at].clone();
            if (node.parent.is_some() || node.space != 0) && is_leaf(tree, node.id) {
                tree.nodes.retain(|other| other.id != node.id);
                if let Shows::Configured(key) = node.shows {
                    tree.gone.push(key);
                }
                // Masters need a member.
                let groups: BTreeSet<u32> = tree.nodes.iter().filter_map(|node| node.shared).collect();
                for node in &mut tree.nodes {
                    node.master = node.master.filter(|master| groups.contains(master));
                }
            }
        }
        5 => tree.nodes[at].attributes = Some(u64::from(what >> 12 & 15)),
        6 => {
            // All members of a group have one master.
            let group = what >> 20 & 3;
            let peer = tree.nodes.iter().find(|node| node.shared == Some(group)).map(|node| node.master);
            let node = &mut tree.nodes[at];
            if !node.unbindable && node.shared.is_none() {
                node.shared = Some(group);
                node.master = peer.unwrap_or(node.master.filter(|master| *master < group));
            }
        }
        _ => {
            // No circles: a slave of a group with a smaller number.
            let groups: BTreeSet<u32> = tree.nodes.iter().filter_map(|node| node.shared).collect();
            let own = tree.nodes[at].shared;
            let Some(master) = groups.into_iter().find(|group| *group < own.unwrap_or(u32::MAX)) else {
                return;
            };
            if !tree.nodes[at].unbindable {
                tree.nodes[at].master = Some(master);
            }
            for node in tree.nodes.iter_mut().filter(|node| own.is_some() && node.shared == own) {
                node.master = Some(master);
            }
        }
    }
}

fn configured() -> Tree {
    let nodes = (0..).zip(base()).map(|(id, entry)| Node {
        space: 0,
        id,
        parent: entry
            .parent
            .and_then(|parent| (0..).zip(base()).find(|(_, base)| base.key == parent))
            .map(|(id, _)| id),
        place: entry.place,
        point: entry.key.point.clone(),
        shows: Shows::Configured(entry.key),
        depth: 0,
        directory: true,
        attributes: None,
        shared: None,
        master: None,
        unbindable: false,
    });
    let mut tree = Tree::new();
    tree.nodes = nodes.collect();
    tree
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn steps_lead_to_what_was_asked_for(first in prop::collection::vec(any::<u32>(), 0..25),
        second in prop::collection::vec(any::<u32>(), 0..12), stale in prop::collection::btree_set(100u32..120, 0..3)) {
        let base = base();
        let mut kernel = Kernel::of(&base);
        let (mut tree, mut next) = (configured(), 99);
        for what in first {
            act(&mut tree, &mut next, what);
        }
        tree.check().unwrap();
        let planned = plan(&base, &Done::built(&base), &tree, &BTreeSet::new()).unwrap();
        kernel.run(&base, &planned.steps);
        kernel.check(&base, &tree, &planned.done.layout);
        let again = plan(&base, &planned.done, &tree, &BTreeSet::new()).unwrap();
        prop_assert!(again.steps.is_empty(), "{:?}", again.steps);

        for what in second {
            act(&mut tree, &mut next, what);
        }
        let planned = plan(&base, &planned.done, &tree, &stale).unwrap();
        kernel.run(&base, &planned.steps);
        kernel.check(&base, &tree, &planned.done.layout);
    }

    #[test]
    fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Tree::decode(&bytes);
    }
}

#[test]
fn what_the_target_lacks_is_named_and_what_it_has_more_stays() {
    let mut here = base();
    here.retain(|base| base.key != key("/proc"));
    here.push(Base {
        key: key("/tmp/more"),
        parent: Some(key("/tmp")),
        place: b"more".to_vec(),
        attributes: 0,
    });
    let mut tree = configured();
    let planned = plan(&here, &Done::built(&here), &tree, &BTreeSet::new()).unwrap();
    assert!(planned.steps.is_empty(), "{:?}", planned.steps);
    act(&mut tree, &mut 200, 0);
    let last = tree.nodes.last_mut().unwrap();
    last.shows = Shows::Part { of: Origin::Configured(key("/proc")), path: b"sys".to_vec(), deleted: false };
    let lacks = plan(&here, &Done::built(&here), &tree, &BTreeSet::new()).unwrap_err();
    assert_eq!(lacks.len(), 1);
    assert!(lacks[0].to_string().contains("mount /somewhere: the mount on /proc"), "{}", lacks[0]);
}

#[test]
fn hostile_trees_are_refused() {
    let good = configured();
    let bytes = |tree: &Tree| Tree::decode(&tree.encode().unwrap());
    assert!(bytes(&good).is_ok());
    let mut bad = good.clone();
    bad.nodes[1].place = b"../../etc".to_vec();
    assert!(bytes(&bad).is_err());
    let mut bad = good.clone();
    bad.nodes[1].parent = Some(77);
    assert!(bytes(&bad).is_err());
    let mut bad = good.clone();
    bad.made.push(FileSystem {
        id: 1,
        fs_type: "ext4".into(),
        source: b"/dev/vda".to_vec(),
        options: vec![],
        read_only: false,
        pid_space: 0,
    });
    assert!(bytes(&bad).is_err());
    let mut bad = good;
    bad.nodes[1].shows = Shows::Part { of: Origin::Made(5), path: vec![], deleted: false };
    assert!(bytes(&bad).is_err());
}

#[test]
fn a_namespace_is_not_taken_for_another_one_with_the_same_root() {
    let root = |space| Node {
        space,
        id: 50,
        parent: None,
        place: Vec::new(),
        point: b"/".to_vec(),
        shows: Shows::Part { of: Origin::Configured(key("/")), path: Vec::new(), deleted: false },
        depth: 1,
        directory: true,
        attributes: Some(0),
        shared: None,
        master: None,
        unbindable: false,
    };
    let (base, mut tree) = (base(), configured());
    tree.nodes.push(root(7));
    let first = plan(&base, &Done::built(&base), &tree, &BTreeSet::new()).unwrap();
    assert!(plan(&base, &first.done, &tree, &BTreeSet::new()).unwrap().steps.is_empty());
    *tree.nodes.last_mut().unwrap() = root(8);
    tree.check().unwrap();
    let second = plan(&base, &first.done, &tree, &BTreeSet::new()).unwrap();
    let is = |wanted: fn(&Step) -> bool| second.steps.iter().filter(|step| wanted(step)).count();
    assert_eq!(is(|step| matches!(step, Step::Unmount { .. })), 1);
    assert_eq!(is(|step| matches!(step, Step::Mount { spot: Spot { on: None, .. }, .. })), 1);
    let mut bad = tree.clone();
    bad.nodes.last_mut().unwrap().parent = Some(0);
    assert!(bad.check().is_err(), "it is mounted in another namespace");
    bad = tree;
    bad.nodes.push(Node { id: 51, ..root(8) });
    assert!(bad.check().is_err(), "two root directories");
}
