//! Where a container can go. Pure: facts in, a verdict for every node out.

/// Memory that a node must have beyond the container's own: page tables, the agent's buffers. Bytes.
const OVERHEAD: u64 = 32 << 20;

/// What a node is and has, as far as a move depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `uname -r`.
    pub(crate) kernel_release: String,
    /// `uname -m`.
    pub(crate) arch: String,
    /// Of the vDSO's image.
    pub(crate) vdso_hash: u64,
    /// Bytes of a thread's extended state.
    pub(crate) xsave_size: u32,
    /// Which extended states the kernel has switched on.
    pub(crate) xcr0: u64,
    /// Bytes.
    pub(crate) memory_free: u64,
    /// Versions of the agents' protocol that it speaks.
    pub(crate) peer_versions: Vec<u32>,
    /// Controllers of control groups that it has.
    pub(crate) controllers: Vec<String>,
}

/// A node that may be moved to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its name.
    pub(crate) name: String,
    /// Heartbeats come.
    pub(crate) ready: bool,
    /// Takes nothing new.
    pub(crate) cordoned: bool,
    /// A container of the same name is there.
    pub(crate) occupied: bool,
    /// Memory promised to migrations that are under way, bytes.
    pub(crate) promised: u64,
    /// Facts.
    pub(crate) facts: Facts,
}

/// What is to be moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Where it is.
    pub(crate) source: String,
    /// What that node is.
    pub(crate) facts: Facts,
    /// Resident memory, bytes.
    pub(crate) memory: u64,
    /// Controllers of control groups that limit it; those that are not known yet are looked for by the agents.
    pub(crate) controllers: Vec<String>,
}

/// One node's verdict; it fits when there is no reason against it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The node.
    pub(crate) node: String,
    /// Why it does not fit.
    pub(crate) reasons: Vec<String>,
    /// All of that may pass by itself: readiness, a cordon, a name, room.
    pub(crate) passing: bool,
}

/// Judges one node.
pub(crate) fn judge(needs: &Needs, candidate: &Candidate) -> Verdict {
    let (here, there) = (&needs.facts, &candidate.facts);
    let mut reasons = Vec::new();
    let needed = needs.memory.saturating_add(OVERHEAD);
    let free = there.memory_free.saturating_sub(candidate.promised);
    let passing: [(bool, &dyn Fn() -> String); 4] = [
        (!candidate.ready, &|| "the node is not ready".into()),
        (candidate.cordoned, &|| "the node is cordoned".into()),
        (candidate.occupied && candidate.name != needs.source, &|| {
            "a container of that name is there".into()
        }),
        (free < needed, &|| format!("{} MiB are free, {} MiB are needed", free >> 20, needed >> 20)),
    ];
    reasons.extend(passing.iter().filter(|(wrong, _)| *wrong).map(|(_, reason)| reason()));
    let may_pass = reasons.len();
    let mut refuse = |wrong: bool, reason: &dyn Fn() -> String| {
        if wrong {
            reasons.push(reason());
        }
    };
    refuse(candidate.name == needs.source, &|| "the container is there already".into());
    refuse(here.arch != there.arch, &|| format!("its machine is {:?}, not {:?}", there.arch, here.arch));
    refuse(here.kernel_release != there.kernel_release, &|| {
        format!("its kernel is {}, not {}", there.kernel_release, here.kernel_release)
    });
    refuse(here.vdso_hash != there.vdso_hash, &|| "its vDSO differs".into());
    let missing = here.xcr0 & !there.xcr0;
    refuse(missing != 0, &|| format!("its CPU lacks extended states {missing:#x} (XCR0)"));
    refuse(here.xsave_size > there.xsave_size, &|| {
        format!("its extended state has {} bytes, not {}", there.xsave_size, here.xsave_size)
    });
    refuse(!here.peer_versions.iter().any(|version| there.peer_versions.contains(version)), &|| {
        format!("its agent speaks versions {:?}, not {:?}", there.peer_versions, here.peer_versions)
    });
    for controller in &needs.controllers {
        refuse(!there.controllers.contains(controller), &|| {
            format!("it lacks the cgroup controller {controller}, which limits the container")
        });
    }
    let passing = may_pass == reasons.len();
    Verdict { node: candidate.name.clone(), reasons, passing }
}

/// Chooses the node with the most free memory among those that fit; the first by name of equals.
///
/// # Errors
/// Every node's verdict when none fits.
pub(crate) fn choose(needs: &Needs, candidates: &[Candidate]) -> Result<String, Vec<Verdict>> {
    let verdicts: Vec<Verdict> = candidates.iter().map(|candidate| judge(needs, candidate)).collect();
    let best = candidates
        .iter()
        .zip(&verdicts)
        .filter(|(_, verdict)| verdict.reasons.is_empty())
        .max_by(|(a, _), (b, _)| room(a).cmp(&room(b)).then_with(|| b.name.cmp(&a.name)));
    match best {
        Some((candidate, _)) => Ok(candidate.name.clone()),
        None => Err(verdicts),
    }
}

fn room(candidate: &Candidate) -> u64 {
    candidate.facts.memory_free.saturating_sub(candidate.promised)
}

#[cfg(test)]
mod tests {
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
            peer_versions: vec![1],
            controllers: vec!["memory".into(), "pids".into()],
        }
    }

    fn node(name: &str) -> Candidate {
        Candidate { name: name.into(), ready: true, facts: facts(), ..Candidate::default() }
    }

    fn needs() -> Needs {
        Needs { source: "a".into(), facts: facts(), memory: 1 << 20, controllers: vec!["pids".into()] }
    }

    #[test]
    fn every_difference_is_a_reason_of_its_own() {
        assert_eq!(judge(&needs(), &node("b")).reasons, Vec::<String>::new());
        type Spoil = fn(&mut Candidate);
        let spoils: [(Spoil, &str); 12] = [
            (|c| c.name = "a".into(), "already"),
            (|c| c.ready = false, "not ready"),
            (|c| c.cordoned = true, "cordoned"),
            (|c| c.occupied = true, "of that name"),
            (|c| c.facts.arch = "aarch64".into(), "machine"),
            (|c| c.facts.kernel_release = "6.1.0".into(), "kernel is 6.1.0"),
            (|c| c.facts.vdso_hash = 8, "vDSO"),
            (|c| c.facts.xcr0 = 7, "0xe0"),
            (|c| c.facts.xsave_size = 832, "832 bytes"),
            (|c| c.facts.peer_versions = vec![2], "versions [2]"),
            (|c| c.facts.controllers = vec!["memory".into()], "controller pids"),
            (|c| c.promised = 1 << 30, "0 MiB are free, 33 MiB"),
        ];
        for (spoil, reason) in spoils {
            let mut spoilt = node("b");
            spoil(&mut spoilt);
            let verdict = judge(&needs(), &spoilt);
            assert_eq!(verdict.reasons.len(), 1, "{verdict:?}");
            assert!(verdict.reasons[0].contains(reason), "{verdict:?}");
            let may_pass = ["not ready", "cordoned", "of that name", "0 MiB are free, 33 MiB"];
            assert_eq!(verdict.passing, may_pass.contains(&reason), "{verdict:?}");
        }
    }

    #[test]
    fn a_richer_cpu_fits() {
        let mut richer = node("b");
        richer.facts.xcr0 |= 0x60000;
        richer.facts.xsave_size = 11008;
        assert!(judge(&needs(), &richer).reasons.is_empty());
    }

    fn any_candidate() -> impl Strategy<Value = Candidate> {
        ("[a-h]", any::<[bool; 3]>(), 0u64..1 << 28, 0u64..1 << 27, 0u64..2).prop_map(
            |(name, [ready, cordoned, occupied], free, promised, vdso_hash)| Candidate {
                name,
                ready,
                cordoned,
                occupied,
                promised,
                facts: Facts { memory_free: free, vdso_hash, ..facts() },
            },
        )
    }

    proptest! {
        #[test]
        fn the_choice_fits_and_is_the_roomiest(
            nodes in proptest::collection::vec(any_candidate(), 0..8),
            memory in 0u64..1 << 28,
        ) {
            let needs = Needs { memory, facts: Facts { vdso_hash: 1, ..facts() }, ..needs() };
            let fits = |c: &&Candidate| judge(&needs, c).reasons.is_empty();
            match choose(&needs, &nodes) {
                Ok(name) => {
                    prop_assert_ne!(&name, &needs.source);
                    let most = nodes.iter().filter(fits).map(room).max();
                    prop_assert!(nodes.iter().filter(fits).any(|c| c.name == name && Some(room(c)) == most));
                    let chosen = nodes.iter().filter(fits).find(|c| c.name == name).unwrap();
                    prop_assert!(chosen.ready && !chosen.cordoned && chosen.facts.memory_free >= memory);
                }
                Err(verdicts) => {
                    prop_assert_eq!(verdicts.len(), nodes.len());
                    prop_assert!(verdicts.iter().all(|verdict| !verdict.reasons.is_empty()));
                }
            }
        }
    }
}
