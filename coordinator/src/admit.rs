//! What the queue does next: which migrations begin and where they go, and why the others wait. Pure but for the time since
//! each node was heard.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use proto::v1::{Container, ContainerState, EffectivePolicy, MigrationPolicy, NodeState, Phase};

use crate::cluster::Cluster;
use crate::core::{End, set_condition};
use crate::place::{self, Bar, Choice, Loads, Needs, Verdict};
use crate::policy;
use crate::schedule::{Limits, Pair, Rank, Slots, Waiting, order};
use crate::store::Record;

#[cfg(test)]
mod tests;

/// The condition of a migration that says whether it has its slot and its target.
pub(crate) const SCHEDULED: &str = "Scheduled";
/// Nodes that a wait names, at most.
const NAMED: usize = 8;

/// What becomes of a migration that waits.
#[derive(Debug)]
pub(crate) enum Turn {
    /// It begins.
    Start(Box<Start>),
    /// It waits for this.
    Wait(Wait),
    /// It cannot begin any more; lines for its decision log.
    Never(End, Vec<String>),
}

/// What a migration waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wait {
    /// Why.
    pub(crate) why: Why,
    /// A sentence.
    pub(crate) message: String,
}

/// Why a migration waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// For its turn: limits are reached. As long as it takes.
    Queued,
    /// A node has to say something first, or be given up.
    NodeSilent,
    /// No node takes it now, and one may before long. As long as the migration's timeout.
    NoCandidateNow,
}

impl Why {
    /// As conditions spell it.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Queued => "Queued",
            Self::NodeSilent => "NodeSilent",
            Self::NoCandidateNow => "NoCandidateNow",
        }
    }
}

impl Wait {
    fn silent(message: String) -> Turn {
        Turn::Wait(Self { why: Why::NodeSilent, message })
    }

    fn queued(message: String) -> Turn {
        Turn::Wait(Self { why: Why::Queued, message })
    }

    /// Writes it into a record that waits.
    pub(crate) fn apply(&self, record: &mut Record, now: SystemTime) {
        match self.why {
            Why::NoCandidateNow => drop(record.lacking_since.get_or_insert_with(|| now.into())),
            // It had a node while it waited for its turn.
            Why::Queued => record.lacking_since = None,
            Why::NodeSilent => {}
        }
        let m = &mut record.migration;
        m.reason = self.why.reason().to_owned();
        m.message.clone_from(&self.message);
        set_condition(&mut m.conditions, SCHEDULED, "False", self.why.reason(), &self.message);
        record.log(format!("waits: {}", self.message));
    }
}

/// A migration that begins.
#[derive(Debug)]
pub(crate) struct Start {
    /// Its two nodes.
    pub(crate) pair: Pair,
    /// Memory promised to it at its target, bytes.
    pub(crate) memory: u64,
    /// Its limits.
    pub(crate) policy: EffectivePolicy,
    /// Lines for its decision log.
    pub(crate) log: Vec<String>,
}

/// What the migrations that have begun do to each node. With `chosen` those of evacuations that still wait, too: their
/// target is chosen, and the next one shall not be sent to the same room.
pub(crate) fn loads(active: &[Record], cluster: &Cluster, chosen: bool) -> Loads {
    let mut loads = Loads::default();
    for record in active {
        let m = &record.migration;
        let goes = record.admitted || chosen && !m.evacuation.is_empty() && !m.target_node.is_empty();
        if goes {
            let container = cluster.container(record.container()).unwrap_or_default();
            // It may have grown since it was admitted.
            let memory = record.memory.max(container.memory_bytes);
            loads.add(&m.source_node, &m.target_node, memory, record.container(), &container.labels);
        }
    }
    loads
}

fn pair(record: &Record) -> Pair {
    Pair { source: record.migration.source_node.clone(), target: record.migration.target_node.clone() }
}

fn waiting(record: &Record) -> Waiting<'_> {
    let m = &record.migration;
    let background = m.spec.as_ref().is_some_and(|spec| spec.background);
    let rank = match (background, m.evacuation.is_empty()) {
        (true, _) => Rank::Background,
        (false, false) => Rank::Drain,
        (false, true) => Rank::User,
    };
    let created = m.created.and_then(|time| SystemTime::try_from(time).ok());
    let created = created.unwrap_or(SystemTime::UNIX_EPOCH);
    Waiting { name: &m.name, source: &m.source_node, rank, created }
}

/// Walks the queue once; a migration that must wait holds up no other. Answers each one's turn by name.
pub(crate) fn walk(
    cluster: &Cluster,
    limits: Limits,
    active: &[Record],
    policies: &[MigrationPolicy],
    now: SystemTime,
) -> Vec<(String, Turn)> {
    let mut loads = loads(active, cluster, false);
    // One whose outcome is unknown loads nobody, and may stay so until an operator comes.
    let running =
        active.iter().filter(|record| record.admitted && record.migration.phase() != Phase::OutcomeUnknown);
    let mut slots = Slots::new(limits, running.map(pair));
    let queue: Vec<&Record> = active.iter().filter(|record| !record.admitted).collect();
    let described: Vec<Waiting<'_>> = queue.iter().map(|record| waiting(record)).collect();
    let mut turns = Vec::new();
    for index in order(&described, &slots, now) {
        let Some(record) = queue.get(index) else { continue };
        let turn = turn(cluster, record, policies, &slots, &loads, now);
        if let Turn::Start(start) = &turn {
            slots.take(&start.pair);
            let labels = cluster.container(record.container()).unwrap_or_default().labels;
            let Pair { source, target } = &start.pair;
            loads.add(source, target, start.memory, record.container(), &labels);
        }
        turns.push((record.migration.name.clone(), turn));
    }
    turns
}

fn turn(
    cluster: &Cluster,
    record: &Record,
    policies: &[MigrationPolicy],
    slots: &Slots,
    loads: &Loads,
    now: SystemTime,
) -> Turn {
    let name = record.container();
    let Some(container) = cluster.container(name) else {
        return Turn::Never(
            End::failed("ContainerGone", format!("there is no container {name}")),
            Vec::new(),
        );
    };
    let source = &container.node;
    match cluster.node_state(source) {
        Some(NodeState::Ready) => {}
        Some(NodeState::Unknown) => return Wait::silent(format!("{source} is silent")),
        _ => {
            let message = format!("{source}, where {name} is, is not ready");
            return Turn::Never(End::failed("SourceNotReady", message), Vec::new());
        }
    }
    if container.state() == ContainerState::Migrating {
        return Wait::silent(format!("{source} has not said yet that the last migration of {name} is over"));
    }
    if container.state() != ContainerState::Running {
        let message = format!("{name} on {source} is not running but {}", container.state().as_str_name());
        return Turn::Never(End::failed("ContainerNotRunning", message), Vec::new());
    }
    match slots.refuse_source(source) {
        Some(reason) => Wait::queued(reason),
        None => placed(cluster, record, &container, policies, slots, loads, now),
    }
}

fn placed(
    cluster: &Cluster,
    record: &Record,
    container: &Container,
    policies: &[MigrationPolicy],
    slots: &Slots,
    loads: &Loads,
    now: SystemTime,
) -> Turn {
    let spec = record.migration.spec.clone().unwrap_or_default();
    let wanted = spec.target_node.as_str();
    let mut candidates = cluster.candidates(container, loads);
    candidates.retain(|candidate| wanted.is_empty() || candidate.name == wanted);
    let selector: BTreeMap<_, _> = spec.node_selector.clone().into_iter().collect();
    let needs = Needs { selector, ..Needs::of(container, cluster.facts(&container.node)) };
    let (free, full): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|c| slots.refuse_target(&c.name).is_none());
    let (policy, mut log) = match policy::resolve(&spec, &container.labels, policies) {
        Ok(resolved) => resolved,
        Err(error) => return Turn::Never(End::failed("PolicyGone", error.to_string()), Vec::new()),
    };
    match place::choose(&needs, &free) {
        Ok(Choice { node: target, log: mut chosen }) => {
            // Who names the node has chosen it.
            if !wanted.is_empty() {
                chosen.clear();
            }
            let busy = full.iter().filter(|_| wanted.is_empty());
            chosen.extend(busy.filter_map(|candidate| {
                let reason = slots.refuse_target(&candidate.name)?;
                Some(format!("{} is not: {reason}", candidate.name))
            }));
            log.extend(chosen);
            let pair = Pair { source: container.node.clone(), target };
            Turn::Start(Box::new(Start { pair, memory: container.memory_bytes, policy, log }))
        }
        Err(mut verdicts) => {
            if let Ok(busy) = place::choose(&needs, &full) {
                return Wait::queued(slots.refuse_target(&busy.node).unwrap_or_default());
            }
            verdicts.extend(full.iter().map(|candidate| place::judge(&needs, candidate)));
            let silent = verdicts.iter().find(|v| cluster.node_state(&v.node) == Some(NodeState::Unknown));
            match silent {
                Some(verdict) => Wait::silent(format!("{} is silent", verdict.node)),
                // An evacuation chooses another node, or tries again later: it waits itself.
                None if record.migration.evacuation.is_empty() => {
                    for_a_node(record, &container.name, &policy, &verdicts, now)
                        .unwrap_or_else(|| no_candidate(&container.name, wanted, &verdicts))
                }
                None => no_candidate(&container.name, wanted, &verdicts),
            }
        }
    }
}

/// It waits for a node that may take it before long, within its timeout; `None` when there is no such node.
fn for_a_node(
    record: &Record,
    container: &str,
    policy: &EffectivePolicy,
    verdicts: &[Verdict],
    now: SystemTime,
) -> Option<Turn> {
    let mut hopes = verdicts.iter().filter(|verdict| verdict.bar == Bar::Passing);
    let mut named: Vec<String> = hopes.by_ref().take(NAMED).map(ToString::to_string).collect();
    if named.is_empty() {
        return None;
    }
    let more = hopes.count();
    if more > 0 {
        named.push(format!("and {more} more nodes"));
    }
    let message = format!("no node takes {container} now: {}", named.join("; "));
    let limit = policy.policy.as_ref().and_then(|policy| policy.timeout);
    let limit = limit.and_then(|limit| Duration::try_from(limit).ok()).unwrap_or_default();
    let since = record.lacking_since.and_then(|since| SystemTime::try_from(since).ok()).unwrap_or(now);
    if now.duration_since(since).unwrap_or_default() < limit {
        return Some(Turn::Wait(Wait { why: Why::NoCandidateNow, message }));
    }
    let limit = humantime::format_duration(limit);
    let end = End::failed("TimedOut", format!("waited {limit}; {message}"));
    Some(Turn::Never(end, verdicts.iter().map(ToString::to_string).collect()))
}

fn no_candidate(container: &str, wanted: &str, verdicts: &[Verdict]) -> Turn {
    let reasons: Vec<String> = verdicts.iter().map(ToString::to_string).collect();
    let message = match reasons.as_slice() {
        [] if wanted.is_empty() => format!("no node is known that {container} could move to"),
        [] => format!("there is no node {wanted}"),
        _ => format!("no node takes {container}: {}", reasons.join("; ")),
    };
    Turn::Never(End::failed("NoCandidate", message), reasons)
}
