//! Where a container can go. Pure: facts in, a verdict for every node out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proto::v1::Container;

#[cfg(test)]
mod tests;

/// Containers with the same value of this label are never on one node.
pub(crate) const ANTI_AFFINITY: &str = "gantry.dev/anti-affinity-group";
/// Nodes that were not chosen which a decision names, at most.
const TOLD: usize = 32;

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
    /// Bytes; 0 when it is not known.
    pub(crate) memory_total: u64,
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
    /// What migrations that are under way do to it.
    pub(crate) load: Load,
    /// Memory of containers that have come a moment ago, which its facts may still show as free, bytes.
    pub(crate) settling: u64,
    /// A container there that is of the same anti-affinity group.
    pub(crate) conflict: Option<String>,
    /// Containers there with the same labels.
    pub(crate) alike: usize,
    /// Its labels.
    pub(crate) labels: Arc<HashMap<String, String>>,
    /// Facts.
    pub(crate) facts: Arc<Facts>,
}

/// What migrations that are under way do to a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Memory promised to those that come, bytes.
    pub(crate) promised: u64,
    /// Containers that leave it.
    pub(crate) leaving: Vec<String>,
    /// Containers that come.
    pub(crate) coming: Vec<Coming>,
}

/// A container that comes to a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Coming {
    /// Its name.
    pub(crate) container: String,
    /// Its labels.
    pub(crate) labels: HashMap<String, String>,
}

/// The load of each node by name; those without any are missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Loads(pub(crate) BTreeMap<String, Load>);

impl Loads {
    /// The load of a node.
    pub(crate) fn of(&self, node: &str) -> Load {
        self.0.get(node).cloned().unwrap_or_default()
    }

    /// Counts a move.
    pub(crate) fn add(
        &mut self,
        source: &str,
        target: &str,
        memory: u64,
        container: &str,
        labels: &HashMap<String, String>,
    ) {
        let load = self.0.entry(target.to_owned()).or_default();
        load.promised = load.promised.saturating_add(memory);
        load.coming.push(Coming { container: container.to_owned(), labels: labels.clone() });
        self.0.entry(source.to_owned()).or_default().leaving.push(container.to_owned());
    }
}

/// The anti-affinity group in a container's labels.
pub(crate) fn group(labels: &HashMap<String, String>) -> Option<&str> {
    labels.get(ANTI_AFFINITY).map(String::as_str).filter(|group| !group.is_empty())
}

/// Whether two containers are alike to the spread: they have the same labels, and some.
pub(crate) fn are_alike(a: &HashMap<String, String>, b: &HashMap<String, String>) -> bool {
    !a.is_empty() && a == b
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
    /// Its name.
    pub(crate) container: String,
    /// Its labels: of its anti-affinity group, and for the spread.
    pub(crate) labels: HashMap<String, String>,
    /// Labels that the node must have.
    pub(crate) selector: BTreeMap<String, String>,
}

impl Needs {
    /// What is known of a container without asking its agent.
    pub(crate) fn of(container: &Container, facts: Facts) -> Self {
        Self {
            source: container.node.clone(),
            facts,
            memory: container.memory_bytes,
            // Its agent says so when it has looked; the target then refuses what it lacks.
            controllers: Vec::new(),
            container: container.name.clone(),
            labels: container.labels.clone(),
            selector: BTreeMap::new(),
        }
    }
}

/// What has to happen until a node fits: the more, the greater.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bar {
    /// Nothing: it fits.
    #[default]
    None,
    /// It passes by itself: readiness, room on a node that is large enough, a neighbour that leaves.
    Passing,
    /// Somebody has to end it: a cordon, a container of that name, a neighbour that stays.
    Standing,
    /// The node is of another kind, or too small.
    Never,
}

/// One node's verdict; it fits when there is no reason against it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The node.
    pub(crate) node: String,
    /// Why it does not fit.
    pub(crate) reasons: Vec<String>,
    /// The greatest of what stands against it.
    pub(crate) bar: Bar,
}

impl Verdict {
    fn refuse(&mut self, wrong: bool, bar: Bar, reason: impl FnOnce() -> String) {
        if wrong {
            self.reasons.push(reason());
            self.bar = self.bar.max(bar);
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.node, self.reasons.join(", "))
    }
}

/// Judges one node.
pub(crate) fn judge(needs: &Needs, candidate: &Candidate) -> Verdict {
    let (here, there) = (&needs.facts, &candidate.facts);
    let mut verdict = Verdict { node: candidate.name.clone(), ..Verdict::default() };
    let needed = needs.memory.saturating_add(OVERHEAD);
    let free = room(candidate);
    verdict.refuse(!candidate.ready, Bar::Passing, || "the node is not ready".into());
    verdict.refuse(candidate.cordoned, Bar::Standing, || "the node is cordoned".into());
    verdict.refuse(candidate.occupied && candidate.name != needs.source, Bar::Standing, || {
        "a container of that name is there".into()
    });
    let too_small = there.memory_total != 0 && there.memory_total < needed;
    verdict.refuse(too_small, Bar::Never, || {
        format!("it has {} MiB in all, {} MiB are needed", there.memory_total >> 20, needed >> 20)
    });
    verdict.refuse(!too_small && free < needed, Bar::Passing, || {
        format!("{} MiB are free, {} MiB are needed", free >> 20, needed >> 20)
    });
    if let Some((name, verb)) = neighbour(needs, candidate) {
        let leaves = candidate.load.leaving.iter().any(|leaving| leaving == name);
        let bar = if leaves { Bar::Passing } else { Bar::Standing };
        let group = group(&needs.labels).unwrap_or_default();
        verdict
            .refuse(true, bar, || format!("{name}, also of the anti-affinity group {group}, {verb} there"));
    }
    let mut refuse = |wrong: bool, reason: &dyn Fn() -> String| verdict.refuse(wrong, Bar::Never, reason);
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
    for lack in unselected(needs, candidate) {
        refuse(true, &|| lack.clone());
    }
    verdict
}

/// The labels that a node lacks.
pub(crate) fn unselected(needs: &Needs, candidate: &Candidate) -> Vec<String> {
    let lacks = needs.selector.iter().filter(|(key, value)| candidate.labels.get(*key) != Some(value));
    lacks.map(|(key, value)| format!("it has no label {key}={value}")).collect()
}

/// Another container of the same group at the node, and whether it is there or comes there.
fn neighbour<'a>(needs: &Needs, candidate: &'a Candidate) -> Option<(&'a str, &'static str)> {
    let own = group(&needs.labels)?;
    let coming = || {
        let of_it = |c: &&Coming| c.container != needs.container && group(&c.labels) == Some(own);
        candidate.load.coming.iter().find(of_it).map(|c| (c.container.as_str(), "comes"))
    };
    candidate.conflict.as_deref().map(|name| (name, "is")).or_else(coming)
}

fn room(candidate: &Candidate) -> u64 {
    candidate.facts.memory_free.saturating_sub(candidate.load.promised).saturating_sub(candidate.settling)
}

/// How well a node suits, to be compared with that of another one: the more the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    /// Memory that stays free, bytes, over the migrations that the node shares its link with and over the containers
    /// there with the same labels.
    suits: u64,
    /// Of equals that with fewer migrations, then with fewer of the same labels, then with more room.
    load: std::cmp::Reverse<usize>,
    alike: std::cmp::Reverse<usize>,
    free: u64,
}

/// How well a node suits.
pub(crate) fn score(needs: &Needs, candidate: &Candidate) -> Score {
    let free = room(candidate).saturating_sub(needs.memory).saturating_sub(OVERHEAD);
    let load = candidate.load.coming.len() + candidate.load.leaving.len();
    let coming = candidate.load.coming.iter().filter(|c| are_alike(&c.labels, &needs.labels)).count();
    let alike = candidate.alike + coming;
    let share = (1 + load as u64).saturating_mul(1 + alike as u64);
    Score { suits: free / share, load: std::cmp::Reverse(load), alike: std::cmp::Reverse(alike), free }
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (load, alike) = (self.load.0, self.alike.0);
        write!(f, "{} MiB stay free, {load} migrations there, {alike} of the same labels", self.free >> 20)
    }
}

/// A node that was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The node.
    pub(crate) node: String,
    /// Lines for the decision log: why this one, and why none of the others.
    pub(crate) log: Vec<String>,
}

/// Chooses the node that suits best among those that fit; the first by name of equals.
///
/// # Errors
/// Every node's verdict when none fits.
pub(crate) fn choose(needs: &Needs, candidates: &[Candidate]) -> Result<Choice, Vec<Verdict>> {
    let verdicts: Vec<Verdict> = candidates.iter().map(|candidate| judge(needs, candidate)).collect();
    let fits = candidates.iter().zip(&verdicts).filter(|(_, verdict)| verdict.reasons.is_empty());
    let best = fits
        .map(|(candidate, _)| (score(needs, candidate), candidate))
        .max_by(|(a, one), (b, other)| a.cmp(b).then_with(|| other.name.cmp(&one.name)));
    let Some((suits, best)) = best else { return Err(verdicts) };
    let mut log = vec![format!("{} is chosen: {suits}", best.name)];
    let others = candidates.iter().zip(&verdicts).filter(|(c, _)| c.name != best.name);
    log.extend(others.take(TOLD).map(|(candidate, verdict)| match verdict.reasons.as_slice() {
        [] => format!("{} is not: {}", candidate.name, score(needs, candidate)),
        reasons => format!("{} is not: {}", candidate.name, reasons.join(", ")),
    }));
    if let Some(more) = candidates.len().checked_sub(TOLD + 1).filter(|more| *more > 0) {
        log.push(format!("nor are {more} more nodes"));
    }
    Ok(Choice { node: best.name.clone(), log })
}
