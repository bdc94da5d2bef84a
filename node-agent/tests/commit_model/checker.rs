//! Breadth-first search over all interleavings. Two things are asked of every state that can be reached: that no
//! rule is broken in it, and that from it, with no further fault, an end can be reached.
//!
//! The second is checked backwards over the steps that are no faults. A run that is fair to every step then ends,
//! and a state without further steps is an end itself.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use super::state::{Bounds, State};
use super::steps::{Rule, Step, run, steps};

/// A broken rule and the steps to it.
#[derive(Debug)]
pub(crate) struct CounterExample {
    pub(crate) what: &'static str,
    pub(crate) trace: Vec<Step>,
}

/// What a search found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) took: Duration,
    /// States in which only an operator can go on.
    pub(crate) need_operator: usize,
    pub(crate) counter_example: Option<CounterExample>,
}

/// A state's number, and the step that first led to it.
type Parents = Vec<(u32, Step)>;

fn trace(parents: &Parents, mut at: u32) -> Vec<Step> {
    let mut trace = Vec::new();
    while at != 0 {
        let (before, step) = parents[at as usize];
        trace.push(step);
        at = before;
    }
    trace.reverse();
    trace
}

/// What is wrong with a state that `step` has led to.
fn wrong(before: &State, step: Step, after: &State) -> Option<&'static str> {
    if after.broken.is_some() {
        return after.broken;
    }
    if after.running() > 1 {
        return Some("two copies run");
    }
    if !after.resolved && after.runs_stale() {
        return Some("a copy runs that is older than what another has acknowledged");
    }
    if !after.resolved && !step.ends_copies() && before.lives() && !after.lives() {
        return Some("the last copy is destroyed");
    }
    None
}

/// Searches everything that can be reached within `bounds`, with one rule broken or none.
pub(crate) fn search(bounds: Bounds, mutated: Option<Rule>) -> Found {
    let began = Instant::now();
    let first = State::new(bounds);
    let mut known: HashMap<State, u32> = HashMap::from([(first, 0)]);
    let mut states = vec![first];
    let mut parents: Parents = vec![(0, Step::Order(0))];
    // Steps that are no faults, backwards.
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let mut counter_example = None;
    let mut at = 0;
    let mut next = Vec::new();
    'search: while at < states.len() {
        let (number, state) = (u32::try_from(at).expect("fewer than 2^32 states"), states[at]);
        at += 1;
        if let Some(node) = state.needs_operator()
            && state.left.resolves > 0
            && run(&state, Step::Resolve(node), mutated).is_none()
        {
            let what = "an operator's word is refused where nothing else helps";
            counter_example = Some(CounterExample { what, trace: trace(&parents, number) });
            break;
        }
        next.clear();
        steps(&state, &mut next);
        for step in &next {
            let Some(after) = run(&state, *step, mutated) else { continue };
            let reached = match known.entry(after) {
                Entry::Occupied(entry) => *entry.get(),
                Entry::Vacant(entry) => {
                    let new = u32::try_from(states.len()).expect("fewer than 2^32 states");
                    entry.insert(new);
                    states.push(after);
                    parents.push((number, *step));
                    new
                }
            };
            if let Some(what) = wrong(&state, *step, &after) {
                let mut trace = trace(&parents, number);
                trace.push(*step);
                counter_example = Some(CounterExample { what, trace });
                break 'search;
            }
            if !step.is_fault() && reached != number {
                edges.push((reached, number));
            }
        }
    }
    let need_operator = states.iter().filter(|state| state.needs_operator().is_some()).count();
    if counter_example.is_none() {
        counter_example = endless(&states, edges).map(|number| CounterExample {
            what: "the run cannot end without another fault or an operator",
            trace: trace(&parents, number),
        });
    }
    Found { states: states.len(), took: began.elapsed(), need_operator, counter_example }
}

/// The first state from which no end can be reached.
fn endless(states: &[State], mut edges: Vec<(u32, u32)>) -> Option<u32> {
    edges.sort_unstable();
    let mut ends = vec![false; states.len()];
    let mut queue: Vec<u32> =
        (0u32..).zip(states).filter(|(_, state)| state.is_end()).map(|(at, _)| at).collect();
    for at in &queue {
        ends[*at as usize] = true;
    }
    while let Some(at) = queue.pop() {
        let from = edges.partition_point(|(to, _)| *to < at);
        for (_, before) in edges[from..].iter().take_while(|(to, _)| *to == at) {
            if !std::mem::replace(&mut ends[*before as usize], true) {
                queue.push(*before);
            }
        }
    }
    ends.iter().position(|ends| !ends).and_then(|at| u32::try_from(at).ok())
}
