//! Which queued migrations may begin now. Pure.

use std::collections::HashMap;

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
        if self.running >= self.limits.cluster {
            return Some(format!("{} migrations run in the cluster, its limit", self.running));
        }
        full(&self.outgoing, source, self.limits.outgoing).map(|n| format!("{n} leave {source}, its limit"))
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
}
