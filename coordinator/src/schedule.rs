//! Which queued migrations may begin now, and in which order they are asked. Pure.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

/// Whoever has waited for this long is asked with the next better rank.
const AGE: Duration = Duration::from_secs(300);

/// How many migrations may run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Away from one node.
    pub(crate) outgoing: usize,
    /// Towards one node.
    pub(crate) incoming: usize,
    /// In all.
    pub(crate) cluster: usize,
}

/// The nodes that a migration loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// From here.
    pub(crate) source: String,
    /// To here.
    pub(crate) target: String,
}

/// What runs now, against the limits.
#[derive(Debug)]
pub(crate) struct Slots {
    limits: Limits,
    outgoing: HashMap<String, usize>,
    incoming: HashMap<String, usize>,
    running: usize,
}

impl Slots {
    /// The slots that are left beside what runs.
    pub(crate) fn new(limits: Limits, running: impl IntoIterator<Item = Pair>) -> Self {
        let mut slots = Self { limits, outgoing: HashMap::new(), incoming: HashMap::new(), running: 0 };
        for pair in running {
            slots.take(&pair);
        }
        slots
    }

    /// Why nothing can leave `source` now; `None` when something can.
    pub(crate) fn refuse_source(&self, source: &str) -> Option<String> {
        // The source first: its limit is the one that lasts, so that what a record says changes seldom.
        if let Some(n) = full(&self.outgoing, source, self.limits.outgoing) {
            return Some(format!("{n} leave {source}, its limit"));
        }
        (self.running >= self.limits.cluster)
            .then(|| format!("{} migrations run in the cluster, its limit", self.running))
    }

    /// Why nothing can come to `target` now.
    pub(crate) fn refuse_target(&self, target: &str) -> Option<String> {
        full(&self.incoming, target, self.limits.incoming).map(|n| format!("{n} come to {target}, its limit"))
    }

    /// Counts a migration as running.
    pub(crate) fn take(&mut self, pair: &Pair) {
        *self.outgoing.entry(pair.source.clone()).or_default() += 1;
        *self.incoming.entry(pair.target.clone()).or_default() += 1;
        self.running += 1;
    }
}

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rank {
    /// Somebody waits for it.
    User,
    /// A node is being emptied.
    Drain,
    /// It gives way.
    Background,
}

/// A migration that waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiting<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// The node that it leaves.
    pub(crate) source: &'a str,
    /// Who goes first.
    pub(crate) rank: Rank,
    /// Since when it waits.
    pub(crate) created: SystemTime,
}

/// The order in which migrations are asked, as indices: by rank, which rises with the time that one has waited, so that
/// none waits for ever; within a rank in rounds over the nodes that they leave, so that no node's backlog holds up another
/// node when slots of the cluster are scarce; of one node the oldest first. What leaves a node already counts as its share.
pub(crate) fn order(waiting: &[Waiting<'_>], slots: &Slots, now: SystemTime) -> Vec<usize> {
    let rank = |one: &Waiting<'_>| {
        let waited = now.duration_since(one.created).unwrap_or_default();
        let steps = waited.as_secs() / AGE.as_secs();
        (one.rank as u64).saturating_sub(steps)
    };
    let mut oldest: Vec<(u64, &Waiting<'_>, usize)> =
        waiting.iter().enumerate().map(|(index, one)| (rank(one), one, index)).collect();
    oldest.sort_by_key(|(rank, one, _)| (*rank, one.created, one.name));
    let mut shares: HashMap<(u64, &str), usize> = HashMap::new();
    let mut rounds: Vec<(u64, usize, usize)> = Vec::with_capacity(oldest.len());
    for (rank, one, index) in oldest {
        let running = || slots.outgoing.get(one.source).copied().unwrap_or_default();
        let share = shares.entry((rank, one.source)).or_insert_with(running);
        rounds.push((rank, *share, index));
        *share += 1;
    }
    // Stable: within a round the oldest first.
    rounds.sort_by_key(|(rank, round, _)| (*rank, *round));
    rounds.into_iter().map(|(_, _, index)| index).collect()
}

fn full(counts: &HashMap<String, usize>, node: &str, limit: usize) -> Option<usize> {
    counts.get(node).copied().filter(|count| *count >= limit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> impl Strategy<Value = Pair> {
        ("[a-d]", "[a-d]").prop_map(|(source, target)| Pair { source, target })
    }

    /// Walks a queue, oldest first, as the coordinator does.
    fn admit(limits: Limits, running: &[Pair], queue: &[Pair]) -> (Vec<Pair>, Vec<Pair>) {
        let mut slots = Slots::new(limits, running.iter().cloned());
        queue.iter().cloned().partition(|pair| {
            let refused = slots.refuse_source(&pair.source).or_else(|| slots.refuse_target(&pair.target));
            let free = refused.is_none();
            if free {
                slots.take(pair);
            }
            free
        })
    }

    fn count(pairs: &[Pair], holds: impl Fn(&Pair) -> bool) -> usize {
        pairs.iter().filter(|pair| holds(pair)).count()
    }

    proptest! {
        #[test]
        fn limits_hold_and_no_slot_stays_empty(
            outgoing in 1usize..4, incoming in 1usize..4, cluster in 1usize..8,
            queue in proptest::collection::vec(pair(), 0..20),
        ) {
            let limits = Limits { outgoing, incoming, cluster };
            let (admitted, waiting) = admit(limits, &[], &queue);
            prop_assert!(admitted.len() <= cluster);
            for node in ["a", "b", "c", "d"] {
                prop_assert!(count(&admitted, |p| p.source == node) <= outgoing);
                prop_assert!(count(&admitted, |p| p.target == node) <= incoming);
            }
            // Whatever waits, waits for a limit that is reached; so one node's backlog holds up nobody else.
            for pair in &waiting {
                prop_assert!(
                    admitted.len() == cluster
                        || count(&admitted, |p| p.source == pair.source) == outgoing
                        || count(&admitted, |p| p.target == pair.target) == incoming
                );
            }
            // Of those that load the same two nodes the oldest go first.
            for wanted in &waiting {
                let same: Vec<bool> = {
                    let mut left = count(&admitted, |p| p == wanted);
                    queue.iter().filter(|p| *p == wanted).map(|_| {
                        let first = left > 0;
                        left = left.saturating_sub(1);
                        first
                    }).collect()
                };
                prop_assert!(same.is_sorted_by(|a, b| a >= b));
            }
        }

        #[test]
        fn what_runs_already_counts(running in proptest::collection::vec(pair(), 0..20)) {
            let limits = Limits { outgoing: 2, incoming: 2, cluster: 64 };
            let slots = Slots::new(limits, running.clone());
            for node in ["a", "b", "c", "d"] {
                let leaving = count(&running, |p| p.source == node);
                prop_assert_eq!(slots.refuse_source(node).is_some(), leaving >= 2);
                let coming = count(&running, |p| p.target == node);
                prop_assert_eq!(slots.refuse_target(node).is_some(), coming >= 2);
            }
        }
    }

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    /// Name, source, rank and second of creation.
    type One = (String, String, u8, u64);

    fn described(queue: &[One]) -> Vec<Waiting<'_>> {
        let mut all = Vec::new();
        for (name, source, rank, created) in queue {
            let rank = [Rank::User, Rank::Drain, Rank::Background][usize::from(*rank)];
            all.push(Waiting { name, source, rank, created: START + Duration::from_secs(*created) });
        }
        all
    }

    fn any_queue() -> impl Strategy<Value = Vec<One>> {
        proptest::collection::vec(("[a-d]", 0u8..3, 0u64..1000), 0..30).prop_map(|all| {
            let named = all.into_iter().enumerate();
            named.map(|(n, (source, rank, created))| (format!("m{n:02}"), source, rank, created)).collect()
        })
    }

    fn limits(cluster: usize) -> Limits {
        Limits { outgoing: 2, incoming: 64, cluster }
    }

    proptest! {
        #[test]
        fn ranks_come_first_then_rounds_then_age(queue in any_queue(), running in proptest::collection::vec("[a-d]", 0..4)) {
            let pairs = running.iter().map(|source| Pair { source: source.clone(), target: "t".into() });
            let slots = Slots::new(limits(64), pairs);
            // Nobody has waited for long.
            let now = START;
            let all = described(&queue);
            let order = order(&all, &slots, now);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..queue.len()).collect::<Vec<_>>());
            let asked: Vec<_> = order.iter().map(|index| &all[*index]).collect();
            prop_assert!(asked.is_sorted_by_key(|one| one.rank as u8));
            for (at, one) in asked.iter().enumerate() {
                let before = asked[..at].iter().filter(|other| other.rank == one.rank);
                for other in before.clone().filter(|other| other.source == one.source) {
                    prop_assert!((other.created, other.name) <= (one.created, one.name));
                }
                // Nobody who is still to come has had a smaller share, by more than one, than the one that is asked.
                let share = |source: &str| running.iter().filter(|s| *s == source).count()
                    + before.clone().filter(|other| other.source == source).count();
                for later in asked[at..].iter().filter(|later| later.rank == one.rank) {
                    prop_assert!(share(later.source) >= share(one.source), "{one:?} before {later:?}");
                }
            }
        }

        /// One slot for all, and users come without end: whatever waits begins all the same.
        #[test]
        fn nobody_waits_for_ever(queue in any_queue(), between in 10u64..120) {
            let mut queue = queue;
            let (mut now, mut left) = (1000u64, queue.len());
            let mut passes = 0;
            while left > 0 {
                passes += 1;
                queue.push((format!("new{passes:05}"), ["a", "z"][passes % 2].into(), 0, now));
                let all = described(&queue);
                let slots = Slots::new(limits(1), []);
                let first = order(&all, &slots, START + Duration::from_secs(now))[0];
                left -= usize::from(queue.remove(first).0.starts_with('m'));
                now += between;
                // Two steps of age, then those that came before, and one more of each round.
                let bound = 2 * AGE.as_secs() / between + 2 * 30 + 30;
                prop_assert!(passes as u64 <= 3 * bound, "{left} of {} wait after {passes} passes", queue.len());
            }
        }

        /// The cluster's limit is the bottleneck: each node with a backlog gets its share. An odd slot goes to the older one.
        #[test]
        fn a_backlog_takes_no_more_than_its_share(long in 10usize..40, short in 1usize..10, cluster in 2usize..6) {
            let mut queue: Vec<One> = (0..long).map(|n| (format!("l{n:02}"), "long".into(), 1, 0)).collect();
            queue.extend((0..short).map(|n| (format!("s{n:02}"), "short".into(), 1, 900)));
            let mut running: std::collections::VecDeque<Pair> = std::collections::VecDeque::new();
            let (mut of_long, mut of_short) = (0usize, 0usize);
            while of_short < short {
                let all = described(&queue);
                let mut slots = Slots::new(Limits { outgoing: 64, incoming: 64, cluster }, running.iter().cloned());
                let free = order(&all, &slots, START).into_iter().find(|index| slots.refuse_source(all[*index].source).is_none());
                match free {
                    Some(index) => {
                        let (_, source, _, _) = queue.remove(index);
                        if source == "long" { of_long += 1 } else { of_short += 1 }
                        let pair = Pair { source, target: "t".into() };
                        slots.take(&pair);
                        running.push_back(pair);
                    }
                    None => drop(running.pop_front()),
                }
                prop_assert!(of_long <= 2 * of_short + cluster, "{of_long} of long, {of_short} of short");
            }
        }
    }
}
